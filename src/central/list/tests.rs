use std::ops::Range;

use proptest::{collection::vec, prelude::*};

use super::*;

type Numbers = Pages<usize, usize>;
/// What a list is like, its pages, and how many entries it has.
type Row = (&'static str, Vec<Page<usize, usize>>, Result<usize, Flaw>);

fn page(ids: impl IntoIterator<Item = usize>, total: impl Into<Option<u64>>) -> Page<usize, usize> {
    Page { entries: Some(ids.into_iter().map(|id| (id, id)).collect()), total: total.into() }
}

/// How many entries a list of these pages has; it must not ask for more of them, nor end before.
fn listed(pages: Vec<Page<usize, usize>>) -> Result<usize, Flaw> {
    let (mut listing, count) = (Numbers::new(), pages.len());
    for (index, page) in pages.into_iter().enumerate() {
        if listing.take(page)? == AfterPage::Done {
            assert_eq!(index + 1, count, "it ended before the last page");
            return Ok(listing.into_entries().len());
        }
    }
    panic!("it would ask for more than {count} pages");
}

#[test]
fn a_list_ends_where_it_ends_and_not_before() {
    let p = |ids: Range<usize>, total: u64| page(ids, total);
    let no_total = |ids: Range<usize>| page(ids, None);
    let miscounted = |listed, total| Err(Flaw::Miscounted { listed, total });
    let table: Vec<Row> = vec![
        ("nothing", vec![p(0..0, 0)], Ok(0)),
        ("nothing, and no total", vec![no_total(0..0)], Ok(0)),
        ("one page", vec![p(0..5, 5)], Ok(5)),
        ("a full page may not be the last", vec![p(0..100, 100), p(0..0, 100)], Ok(100)),
        ("two pages", vec![p(0..100, 150), p(100..150, 150)], Ok(150)),
        ("Central's pages are shorter", vec![p(0..50, 120), p(50..100, 120), p(100..120, 120)], Ok(120)),
        ("shorter pages, no total", vec![no_total(0..50), no_total(50..70), no_total(70..70)], Ok(70)),
        ("the limit is ignored", vec![p(0..250, 250), p(0..0, 250)], Ok(250)),
        ("limit and offset are ignored", vec![p(0..250, 250), p(0..250, 250)], Ok(250)),
        ("the offset is ignored", vec![p(0..100, 250), p(0..100, 250)], Err(Flaw::Repeating)),
        ("the offset is ignored, no total", vec![no_total(0..50), no_total(0..50)], Err(Flaw::Repeating)),
        ("an id twice in a page", vec![page((0..90).chain(0..10), 100), p(0..0, 100)], miscounted(90, 100)),
        ("a total that lies high", vec![p(0..5, 7), p(5..5, 7)], miscounted(5, 7)),
        ("a total that lies low", vec![p(0..100, 100), p(100..150, 100)], miscounted(150, 100)),
        ("a first page that lies low", vec![p(0..5, 0)], miscounted(5, 0)),
        (
            "the total moved: from the beginning",
            vec![p(0..100, 150), p(99..150, 151), p(0..100, 151), p(100..151, 151)],
            Ok(151),
        ),
        (
            "pages overlap: from the beginning",
            vec![p(0..100, 150), p(95..145, 150), p(0..100, 150), p(100..150, 150)],
            Ok(150),
        ),
        (
            "pages overlap each time",
            [
                vec![p(0..100, 249), p(80..180, 249)],
                vec![p(0..100, 249), p(99..199, 249)],
                vec![p(0..100, 249), p(100..200, 249), p(150..199, 249)],
            ]
            .into_iter()
            .flatten()
            .collect(),
            Err(Flaw::Repeating),
        ),
        (
            "the total moves each time",
            (0..3).flat_map(|_| [p(0..100, 150), p(100..149, 149)]).collect(),
            Err(Flaw::Unsettled),
        ),
        ("an entry without id", vec![Page { entries: None, total: Some(1) }], Err(Flaw::NoId)),
    ];
    for (name, pages, expected) in table {
        assert_eq!(listed(pages), expected, "{name}");
    }
}

#[test]
fn a_list_without_end_is_given_up() {
    for total in [None, Some(1_000_000)] {
        let endless = (0..).map(|index| page(index * 100..(index + 1) * 100, total));
        let mut pages = Numbers::new();
        let mut taken = 0;
        let flaw = endless.into_iter().find_map(|page| {
            taken += 1;
            pages.take(page).err()
        });
        assert_eq!((flaw, taken), (Some(Flaw::TooLong), MOST_PAGES));
    }
}

/// What a server does with a list and a question.
#[derive(Debug, Clone, Copy)]
struct Server {
    /// More it does not give at once.
    cap: usize,
    tells_total: bool,
    ignores_offset: bool,
    ignores_limit: bool,
}

impl Server {
    fn answer(self, list: &[usize], offset: usize, limit: usize) -> Page<usize, usize> {
        let offset = if self.ignores_offset { 0 } else { offset };
        let limit = if self.ignores_limit { usize::MAX } else { limit.min(self.cap) };
        let total = self.tells_total.then_some(list.len() as u64);
        page(list.iter().skip(offset).take(limit).copied(), total)
    }
}

/// What happens to a list between two pages.
#[derive(Debug, Clone)]
enum Event {
    Nothing,
    Joins(usize),
    Leaves(usize),
    /// One goes, another comes: the total stays.
    Changes(usize, usize),
    /// One moves to another place.
    Moves(usize, usize),
    Reverses,
}

/// A list where things happen. Nobody who left comes back.
#[derive(Debug)]
struct Moving {
    list: Vec<usize>,
    next: usize,
    events: std::vec::IntoIter<Event>,
    /// How often members came or went.
    changes: usize,
}

impl Moving {
    fn new(count: usize, events: Vec<Event>) -> Self {
        Self { list: (0..count).collect(), next: count, events: events.into_iter(), changes: 0 }
    }

    fn step(&mut self) {
        let event = self.events.next().unwrap_or(Event::Nothing);
        let before = self.list.len();
        let place = |at: usize, count: usize| if count == 0 { 0 } else { at % count };
        match event {
            Event::Joins(at) => self.join(at),
            Event::Leaves(at) if before > 0 => {
                self.list.remove(place(at, before));
                self.changes += 1;
            }
            Event::Changes(out, into) if before > 0 => {
                self.list.remove(place(out, before));
                self.join(into);
            }
            Event::Moves(from, to) if before > 0 => {
                let one = self.list.remove(place(from, before));
                self.list.insert(place(to, before), one);
            }
            Event::Nothing | Event::Leaves(_) | Event::Changes(..) | Event::Moves(..) => {}
            Event::Reverses => self.list.reverse(),
        }
    }

    fn join(&mut self, at: usize) {
        self.list.insert(at % (self.list.len() + 1), self.next);
        self.next += 1;
        self.changes += 1;
    }

    /// Reads the list; who was in it at the last page, and whether members came or went since the last beginning.
    fn read(&mut self, server: Server) -> (Result<Vec<usize>, Flaw>, HashSet<usize>, bool) {
        let mut pages = Numbers::new();
        let mut began = self.changes;
        loop {
            assert!(pages.received.is_multiple_of(pages.limit), "{} by {}", pages.received, pages.limit);
            if pages.count == 0 {
                began = self.changes;
            }
            let page = server.answer(&self.list, pages.received, pages.limit);
            let (at_the_end, is_still) = (self.list.iter().copied().collect(), began == self.changes);
            match pages.take(page) {
                Ok(AfterPage::More) => self.step(),
                Ok(AfterPage::Done) => {
                    let ids = pages.into_entries();
                    return (Ok(ids), at_the_end, is_still);
                }
                Err(flaw) => return (Err(flaw), at_the_end, is_still),
            }
        }
    }
}

fn server() -> impl Strategy<Value = Server> {
    let cap = prop_oneof![Just(100_usize), Just(50), Just(37), 5..=100_usize];
    (cap, prop::bool::weighted(0.8), prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(cap, tells_total, ignores_offset, ignores_limit)| Server { cap, tells_total, ignores_offset, ignores_limit },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let at = 0..400_usize;
    let event = prop_oneof![
        6 => Just(Event::Nothing),
        1 => at.clone().prop_map(Event::Joins),
        1 => at.clone().prop_map(Event::Leaves),
        2 => (at.clone(), at.clone()).prop_map(|(out, into)| Event::Changes(out, into)),
        2 => (at.clone(), at).prop_map(|(from, to)| Event::Moves(from, to)),
        1 => Just(Event::Reverses),
    ];
    vec(event, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    /// A list whose order moves is read right or refused; where its members change too, two equal readings are right.
    #[test]
    fn a_moving_list_is_read_right_or_refused(count in 0..320_usize, events in events(), server in server()) {
        let mut moving = Moving::new(count, events);
        let (first, at_the_end, is_still) = moving.read(server);
        let Ok(first) = first else { return Ok(()) };
        let set: HashSet<_> = first.iter().copied().collect();
        prop_assert_eq!(set.len(), first.len(), "each once");
        if is_still {
            prop_assert_eq!(&set, &at_the_end);
        }
        moving.step();
        let (second, ..) = moving.read(server);
        if second.is_ok_and(|second| second.into_iter().collect::<HashSet<_>>() == set) {
            prop_assert_eq!(set, at_the_end, "two readings agree, and it is another set");
        }
    }

    /// Whatever the server does with offset and limit: a list that stands still is read right or refused.
    #[test]
    fn a_list_that_stands_still_is_read(count in 0..320_usize, server in server()) {
        let (result, ..) = Moving::new(count, Vec::new()).read(server);
        match result {
            Ok(ids) => prop_assert_eq!(ids.len(), count),
            Err(flaw) => {
                prop_assert!(server.ignores_offset, "{flaw:?}");
                prop_assert_eq!(flaw, Flaw::Repeating);
            }
        }
    }
}
