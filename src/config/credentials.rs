//! Section `credentials`: who we are to Central.

use std::path::{Path, PathBuf};

use super::{
    reader::Reader,
    settings::{Allowed, Setting, ShownValue, Unset},
    text::{is_surely_a_path, secret_file, visible},
};

/// Who we are to Central.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The application's client id.
    pub client_id: String,
    /// The file that holds the application's client secret.
    pub client_secret_file: PathBuf,
    /// The file that holds the first refresh token.
    pub refresh_token_file: Option<PathBuf>,
    /// Where the parameters of the refresh grant travel.
    pub grant_placement: GrantPlacement,
    /// How a lost chain may be healed without a person.
    pub login: Option<UserCredentials>,
}

/// A user of Central who may log in with a password: not one of a single sign-on domain.
#[derive(Debug, Clone)]
pub struct UserCredentials {
    /// The user's name.
    pub username: String,
    /// The file that holds the password.
    pub password_file: PathBuf,
    /// The MSP's own customer id.
    pub customer_id: String,
}

/// Where the parameters of the refresh grant travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantPlacement {
    /// In the form body: secrets stay out of the logs that record URLs. `form`.
    Form,
    /// In the query string, as Central's documentation shows it. `query`.
    Query,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "credentials.client_id",
        unset: Unset::Required,
        allowed: Allowed::Text { description: "visible ASCII characters", shown: ShownValue::Never },
        meaning: "The client id of the application that was registered at Central's API gateway.",
    },
    Setting {
        name: "credentials.client_secret_file",
        unset: Unset::Required,
        allowed: Allowed::Text { description: "path of a file that is not empty", shown: ShownValue::Path },
        meaning: "The file that holds the application's client secret.",
    },
    Setting {
        name: "credentials.refresh_token_file",
        unset: Unset::Means("the store already holds a token"),
        allowed: Allowed::Text {
            description: "path; the file may be absent once its token was used",
            shown: ShownValue::Path,
        },
        meaning: "The file that holds the first refresh token.",
    },
    Setting {
        name: "credentials.grant_placement",
        unset: Unset::Default("form"),
        allowed: Allowed::OneOf(&["form", "query"]),
        meaning: "Where the parameters of the refresh grant travel: in the body, or in the query string, as Central's \
                  documentation shows it and as logs of URLs record it.",
    },
    Setting {
        name: "credentials.username",
        unset: Unset::Means("a lost chain waits for a new refresh token"),
        allowed: Allowed::Text { description: "visible ASCII", shown: ShownValue::Never },
        meaning: "A user of Central, not of a single sign-on domain, to log in as when the chain of tokens is lost: at \
                  most three times, half an hour apart.",
    },
    Setting {
        name: "credentials.password_file",
        unset: Unset::Means("no login"),
        allowed: Allowed::Text { description: "path of a file", shown: ShownValue::Path },
        meaning: "The file that holds that user's password. Read again for every login.",
    },
    Setting {
        name: "credentials.customer_id",
        unset: Unset::Means("no login"),
        allowed: Allowed::Text { description: "visible ASCII", shown: ShownValue::Never },
        meaning: "The MSP's own customer id, which a login asks for.",
    },
];

pub(super) fn read(reader: &mut Reader) -> Credentials {
    Credentials {
        client_id: reader.text("credentials.client_id", visible).unwrap_or_default(),
        client_secret_file: reader.text("credentials.client_secret_file", secret_file).unwrap_or_default(),
        refresh_token_file: reader.text("credentials.refresh_token_file", seed),
        grant_placement: reader
            .choice("credentials.grant_placement", &[("form", GrantPlacement::Form), ("query", GrantPlacement::Query)])
            .unwrap_or(GrantPlacement::Form),
        login: login(reader),
    }
}

/// All three or none.
fn login(reader: &mut Reader) -> Option<UserCredentials> {
    let names = ["credentials.username", "credentials.password_file", "credentials.customer_id"];
    let username = reader.text(names[0], visible);
    let password_file = reader.text(names[1], secret_file);
    let customer_id = reader.text(names[2], visible);
    if let Some(missing) = reader.missing_of(&names) {
        reader.problem(missing, "is missing: a login needs credentials.username, .password_file and .customer_id");
    }
    Some(UserCredentials { username: username?, password_file: password_file?, customer_id: customer_id? })
}

/// A seed that has been used may be gone, and a later one may be put in its place while the gateway runs. What is surely
/// no path may be the token itself: that must not be logged as the name of a file.
fn seed(text: &str) -> Result<PathBuf, String> {
    if Path::new(text).exists() {
        secret_file(text)
    } else if is_surely_a_path(text) {
        Ok(text.into())
    } else {
        Err("is not the path of a file in a directory that exists; if it is the token itself, write it into a file of mode \
             0600 and name that"
            .to_owned())
    }
}
