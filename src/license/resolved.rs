//! The customers that a scope includes, when Central lists these. Pure.

use std::collections::HashSet;

use super::{CustomerId, Etag, Scope, Services};

/// A customer as Central lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    /// Central's id.
    pub id: CustomerId,
    /// Free text of somebody else: not unique, and it may hold anything.
    pub name: String,
}

/// A scope, worked out against a list of all customers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Who is in scope, by name.
    pub customers: Vec<Customer>,
    /// Whom the scope names and Central does not list, in the scope's order.
    pub unknown: Vec<CustomerId>,
}

impl Resolved {
    /// The scope, when these are all customers there are. Ids are compared exactly.
    pub fn of(scope: &Scope, listed: Vec<Customer>) -> Self {
        let named = match scope {
            Scope::Include(customers) | Scope::Exclude(customers) => customers.ids(),
            Scope::All(_) => &[],
        };
        let known: HashSet<_> = listed.iter().map(|customer| &customer.id).collect();
        let unknown = named.iter().filter(|id| !known.contains(id)).cloned().collect();
        let named: HashSet<_> = named.iter().collect();
        let is_included = |customer: &Customer| match scope {
            Scope::Include(_) => named.contains(&customer.id),
            Scope::Exclude(_) => !named.contains(&customer.id),
            Scope::All(_) => true,
        };
        let mut customers: Vec<_> = listed.into_iter().filter(is_included).collect();
        customers.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
        Self { customers, unknown }
    }

    /// What binds a change to exactly this.
    pub fn etag(&self, scope: &Scope, services: &Services) -> Etag {
        Etag::of(scope, self.customers.iter().map(|customer| &customer.id), services)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use super::*;
    use crate::license::Customers;

    fn ids(ids: &[&str]) -> Vec<CustomerId> {
        ids.iter().map(|id| CustomerId::new((*id).to_owned()).unwrap()).collect()
    }

    #[test]
    fn a_scope_is_worked_out_against_the_list() {
        let named = |list| Customers::new(ids(list)).unwrap();
        // Names in another order than ids.
        let listed = || -> Vec<_> {
            let words = ["z", "y", "x"].map(str::to_owned);
            ids(&["a", "b", "c"]).into_iter().zip(words).map(|(id, name)| Customer { id, name }).collect()
        };
        let table: [(Scope, &[&str], &[&str]); 6] = [
            (Scope::Include(named(&["b", "a"])), &["b", "a"], &[]),
            (Scope::Include(named(&["d", "a", "A"])), &["a"], &["d", "A"]),
            (Scope::Include(named(&["d"])), &[], &["d"]),
            (Scope::Exclude(named(&["a", "d"])), &["c", "b"], &["d"]),
            (Scope::Exclude(named(&["a", "b", "c"])), &[], &[]),
            (Scope::everyone(), &["c", "b", "a"], &[]),
        ];
        for (scope, customers, unknown) in table {
            let resolved = Resolved::of(&scope, listed());
            let included: Vec<_> = resolved.customers.into_iter().map(|customer| customer.id).collect();
            assert_eq!((included, resolved.unknown), (ids(customers), ids(unknown)), "{scope:?}");
        }
    }
}
