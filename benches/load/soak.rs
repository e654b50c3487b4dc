//! Everything at once for a long time: callers who wait, leave and come in floods, a Central that fails in turns, and
//! strangers on both ports. What must stay flat: memory, file descriptors, threads.

use std::{path::Path, time::Duration};

use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    callers,
    figures::{self, Spread},
    world::{Central, World},
};

/// Callers of the contract.
const CALLERS: usize = 16;
/// Strangers on each port; each holds one connection at a time.
const STRANGERS: usize = 8;
/// How long one kind of trouble lasts.
const TROUBLE: Duration = Duration::from_secs(3);
/// How long a stranger who says nothing stays, at the most.
const SILENCE: Duration = Duration::from_secs(15);

/// What is looked at: memory in MiB, file descriptors, threads.
type Held = [f64; 3];

/// Runs for `time`; the table, and whether all stayed flat.
pub(crate) async fn measure(gateway: &Path, time: Duration) -> (String, bool) {
    let admin = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let admin_listen = admin.to_string();
    let settings = [
        ("quota.per_second", "200"),
        ("central.timeout", "2s"),
        ("central.max_wait", "2s"),
        ("admin.listen", &admin_listen),
    ];
    let world = World::start(gateway, Central::Unlimited, &settings).await;
    let before = held(&world);
    let began = Instant::now();
    let mut crowd = JoinSet::new();
    let clients = callers::clients(world.gateway(), CALLERS, CALLERS / 4).await;
    for (number, client) in clients.into_iter().enumerate() {
        crowd.spawn(call(number, client));
    }
    for address in [world.gateway().address, admin] {
        for _ in 0..STRANGERS {
            crowd.spawn(be_a_stranger(address));
        }
    }
    let mut samples = Vec::new();
    let mut trouble = Instant::now();
    while began.elapsed() < time {
        if trouble.elapsed() >= TROUBLE.min(time / 10) {
            trouble = Instant::now();
            world.sandbox().trouble(&any_trouble()).await;
        }
        sleep((time / 600).max(Duration::from_millis(100))).await;
        samples.push(held(&world));
        eprint!("\rsoak: {:3.0} %", 100.0 * began.elapsed().as_secs_f64() / time.as_secs_f64());
    }
    eprintln!();
    crowd.abort_all();
    while crowd.join_next().await.is_some() {}
    world.sandbox().trouble(&json!([])).await;
    sleep(SILENCE.min(time)).await;
    judged(&samples, before, held(&world))
}

/// Flat: the last fifth holds no more than the second one, but for what an allocator does; and when all have gone, so has
/// what was held for them.
fn judged(samples: &[Held], before: Held, after: Held) -> (String, bool) {
    let fifth = |number: usize| {
        let part = &samples[samples.len() * number / 5..samples.len() * (number + 1) / 5];
        [0, 1, 2].map(|what| Spread::of(part.iter().map(|held| held[what])).median)
    };
    let (early, late) = (fifth(1), fifth(4));
    let row = |name: &str, held: Held| std::iter::once(name.to_owned()).chain(held.map(figures::number)).collect();
    let rows = [
        row("at rest before", before),
        row("second fifth of the time", early),
        row("last fifth", late),
        row("at rest after", after),
    ];
    let is_flat = late[0] <= early[0] * 1.1 + 4.0
        && late[1] <= early[1] * 1.2 + 8.0
        && late[2] <= early[2] + 2.0
        && after[1] <= before[1] + 16.0;
    let head = ["median", "memory, MiB", "file descriptors", "threads"];
    let verdict = if is_flat { "All of it stays flat." } else { "NOT FLAT." };
    (format!("{}\n{verdict}\n", figures::table("Callers, failures and strangers at once", &head, &rows)), is_flat)
}

fn held(world: &World) -> Held {
    let [descriptors, threads] = world.gateway().held();
    [world.gateway().memory().now, descriptors, threads]
}

/// One caller: whatever comes back, it goes on.
async fn call(number: usize, client: callers::Client) {
    loop {
        let (count, patience) = {
            let mut random = rand::rng();
            (random.random_range(1..60), [30, 300, 3_000][random.random_range(0..3)])
        };
        let mut request =
            tonic::Request::new(callers::request(callers::set_of_services(number), callers::new_customers(count)));
        request.set_timeout(Duration::from_secs(3));
        // Some leave before they are told.
        let _ = timeout(Duration::from_millis(patience), callers::unassign(client.clone(), request)).await;
        let _ = callers::list_services(client.clone()).await;
        sleep(Duration::from_millis(20)).await;
    }
}

/// One connection after another, none of them well-behaved.
async fn be_a_stranger(address: std::net::SocketAddr) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    loop {
        if let Ok(Ok(mut stream)) = timeout(Duration::from_secs(2), TcpStream::connect(address)).await {
            let (kind, noise): (u8, [u8; 64]) = (rand::random_range(0..6), std::array::from_fn(|_| rand::random()));
            let words: Vec<u8> = match kind {
                0 => noise.to_vec(),
                1 => [PREFACE, &noise].concat(),
                // SETTINGS, then HEADERS of streams that say nothing more.
                2 => [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83].repeat(20)].concat(),
                3 => b"GET /metrics HTTP/1.1\r\nHost: a\r\n".to_vec(), // and never the empty line
                4 => b"\x16\x03\x01\x02\x00\x01".to_vec(),             // a TLS greeting that stops
                _ => Vec::new(),
            };
            let _ = stream.write_all(&words).await;
            let mut answer = [0; 4_096];
            let stays = SILENCE.mul_f64(rand::random::<f64>());
            let _ =
                timeout(stays, async { while stream.read(&mut answer).await.is_ok_and(|count| count > 0) {} }).await;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// What goes wrong at Central for a while.
fn any_trouble() -> Value {
    match rand::random_range(0..8) {
        0 => json!([]),
        1 => json!([{ "operation": "unassign", "times": null, "reply": { "answer": { "status": 503 } } }]),
        2 => json!([{ "operation": "unassign", "times": null, "reply": { "answer": { "status": 429 } } }]),
        3 => json!([{ "operation": "unassign", "times": null, "applied": true, "reply": "reset" }]),
        4 => json!([{ "operation": "unassign", "times": null, "before": { "delay_ms": 1_500 } }]),
        5 => json!([{ "operation": "unassign", "times": 20, "reply": "silence" }]),
        6 => json!([{ "operation": "unassign", "times": null, "reply": "truncated" }]),
        _ => json!([{ "operation": "unassign", "times": 1, "reply": { "huge": 50_000_000 } }]),
    }
}
