//! Whom a command is about: the options for a scope, and the files that hold ids.

use std::{
    fs,
    io::{self, Read as _},
};

use clap::Args;

use crate::proto::{AllCustomers, CustomerList, ScopeKind, unassign_licenses_request::Scope};

/// Whose licences: exactly one of these. A command that knows them otherwise takes none, so `read` asks for one.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct ScopeArguments {
    /// Exactly these customers, by Central's customer id
    #[arg(long, num_args = 1.., value_name = "ID")]
    include: Vec<String>,

    /// As --include, from a file: one id a line, blank lines and lines that begin with # left out; - is standard input
    #[arg(long, value_name = "FILE")]
    include_from: Option<String>,

    /// Every customer and the MSP's own devices, except these customers
    #[arg(long, num_args = 1.., value_name = "ID")]
    exclude: Vec<String>,

    /// As --exclude, from a file
    #[arg(long, value_name = "FILE")]
    exclude_from: Option<String>,

    /// Every customer
    #[arg(long)]
    all: bool,
}

impl ScopeArguments {
    /// The scope, with its file read. What the ids are worth is for the gateway to judge, but a file without any is
    /// most likely the wrong file.
    pub(super) fn read(&self) -> Result<Scope, String> {
        if self.all {
            return Ok(Scope::AllCustomers(AllCustomers {}));
        }
        if let Some(file) = &self.include_from {
            return Ok(Scope::IncludeCustomers(CustomerList { customer_ids: read_ids(file)? }));
        }
        if let Some(file) = &self.exclude_from {
            return Ok(Scope::ExcludeCustomers(CustomerList { customer_ids: read_ids(file)? }));
        }
        if self.include.is_empty() && self.exclude.is_empty() {
            return Err("say which customers: --include, --include-from, --exclude, --exclude-from or --all".to_owned());
        }
        if self.exclude.is_empty() {
            return Ok(Scope::IncludeCustomers(CustomerList { customer_ids: self.include.clone() }));
        }
        Ok(Scope::ExcludeCustomers(CustomerList { customer_ids: self.exclude.clone() }))
    }

    /// Whether standard input holds the ids, so that nobody can answer a question there.
    pub(super) fn reads_standard_input(&self) -> bool {
        [&self.include_from, &self.exclude_from].into_iter().flatten().any(|file| file == "-")
    }
}

/// The kind of a scope, as the contract's fields are called.
pub(super) fn kind(kind: ScopeKind) -> &'static str {
    match kind {
        ScopeKind::IncludeCustomers => "include_customers",
        ScopeKind::ExcludeCustomers => "exclude_customers",
        ScopeKind::AllCustomers => "all_customers",
        ScopeKind::Unspecified => "unspecified",
    }
}

fn read_ids(file: &str) -> Result<Vec<String>, String> {
    let (name, text) = if file == "-" {
        let mut text = String::new();
        ("standard input", io::stdin().read_to_string(&mut text).map(|_| text))
    } else {
        (file, fs::read_to_string(file))
    };
    let text = text.map_err(|error| format!("cannot read the customer ids from {name}: {error}"))?;
    let ids = ids(&text);
    if ids.is_empty() {
        return Err(format!("{name} holds no customer id, one a line; an empty list never means everyone"));
    }
    Ok(ids)
}

/// One id a line. Blanks around it go, because editors leave them; so does the mark that some put before the first.
fn ids(text: &str) -> Vec<String> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_files_may_have_blank_lines_comments_and_foreign_line_ends() {
        assert_eq!(ids("\u{feff}a\r\n\r\n# b\n  c  \n#\nd#1"), ["a", "c", "d#1"]);
        assert_eq!(ids("# none\n\n"), Vec::<String>::new());
    }
}
