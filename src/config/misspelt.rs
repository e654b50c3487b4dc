//! Variables of the environment that look like ours and are not: a safety switch whose name is misspelt must not stay
//! off in silence.

use super::{
    FILE_VARIABLE,
    settings::{self, Setting},
};

/// The variables that are no settings. The second one is read by the commands for people.
const OTHERS: [&str; 2] = [FILE_VARIABLE, "LICENSE_GATEWAY_ADDRESS"];

/// How Kubernetes and Docker end the variables that they make for a service of the name `license-gateway`.
const LINK_ENDS: [&str; 15] = [
    "_SERVICE_HOST",
    "_SERVICE_PORT",
    "_PORT",
    "_TCP",
    "_TCP_PROTO",
    "_TCP_PORT",
    "_TCP_ADDR",
    "_UDP",
    "_UDP_PROTO",
    "_UDP_PORT",
    "_UDP_ADDR",
    "_SCTP",
    "_SCTP_PROTO",
    "_SCTP_PORT",
    "_SCTP_ADDR",
];

/// What our names begin with, as far as letters go.
const OUR_PREFIX: &str = "LICENSEGATEWAY";
/// So many letters may be wrong, missing or too many: `LICENCE_GATWAY`.
const MOST_WRONG_LETTERS: usize = 3;

/// Whether somebody meant one of our variables by this one.
pub(super) fn is_meant_for_us(variable: &str) -> bool {
    let letters = letters(variable);
    let lengths = OUR_PREFIX.len() - MOST_WRONG_LETTERS..=OUR_PREFIX.len() + MOST_WRONG_LETTERS;
    let starts = lengths.filter_map(|length| letters.get(..length));
    let begins_like_ours = starts.map(|start| strsim::damerau_levenshtein(start, OUR_PREFIX)).min();
    begins_like_ours.is_some_and(|wrong| wrong <= MOST_WRONG_LETTERS) && !is_known(variable)
}

fn is_known(variable: &str) -> bool {
    let is_for_tests = cfg!(feature = "failpoints")
        && ["LICENSE_GATEWAY_FAILPOINTS_", "LICENSE_GATEWAY_TEST_"].iter().any(|start| variable.starts_with(start));
    OTHERS.contains(&variable) || is_for_tests || is_link(variable)
}

/// Kubernetes puts the addresses of services into every pod: `LICENSE_GATEWAY_PORT_50051_TCP_ADDR`. It names ports, too:
/// `LICENSE_GATEWAY_SERVICE_PORT_GRPC`.
fn is_link(variable: &str) -> bool {
    let has_port_name = variable.contains("_SERVICE_PORT_");
    !variable.contains("__") && (has_port_name || LINK_ENDS.iter().any(|end| variable.ends_with(end)))
}

/// The setting whose variable is the most like this one.
pub(super) fn closest_variable(variable: &str) -> Option<&'static Setting> {
    let meant = letters(variable);
    let distance = |setting: &Setting| strsim::damerau_levenshtein(&letters(&setting.variable()), &meant);
    let closest = settings::all().map(|setting| (distance(setting), setting)).min_by_key(|(distance, _)| *distance);
    closest.filter(|(distance, _)| *distance <= meant.len() / 4).map(|(_, setting)| setting)
}

/// Whether a line of a TOML file looks as if it should set `read_only` to true, wherever it stands and however it is
/// spelt.
pub(super) fn has_read_only(text: &str) -> bool {
    text.lines().any(|line| {
        let Some((key, value)) = line.split_once(['=', ':']) else { return false };
        let key = letters(key);
        let is_near =
            |end: usize| key.get(key.len().saturating_sub(end)..).is_some_and(|end| distance_to_read_only(end) <= 2);
        let value = value.split('#').next().unwrap_or_default().trim().trim_matches(['"', '\'']).to_lowercase();
        // Behind a section's name too: `server.read_only`.
        (7..=10).any(is_near) && ["true", "yes", "on", "1", "ture", "tru"].contains(&value.as_str())
    })
}

fn distance_to_read_only(letters: &str) -> usize {
    strsim::damerau_levenshtein(letters, "READONLY")
}

/// Without what separates words, and in capitals.
fn letters(variable: &str) -> String {
    variable.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::VARIABLE_PREFIX;

    #[test]
    fn a_line_that_should_make_read_only_is_recognized() {
        for line in [
            "read_only = true",
            "raed_only = true",
            "Read-Only = \"true\" # for now",
            "readonly=True",
            "read_ony = yes",
            "server.read_only = true",
            "  read_only: true",
            "red_only = 1",
        ] {
            assert!(has_read_only(&format!("[server]\n{line}\n")), "{line}");
        }
        for line in
            ["read_only = false", "# read only", "max_reads_per_hour = 1", "allow_open_scopes = true", "listen = true"]
        {
            assert!(!has_read_only(line), "{line}");
        }
    }

    #[test]
    fn what_others_call_like_us_is_theirs() {
        for theirs in [
            FILE_VARIABLE,
            "LICENSE_GATEWAY_ADDRESS",
            "LICENSE_GATEWAY_PORT",
            "LICENSE_GATEWAY_PORT_50051_TCP",
            "LICENSE_GATEWAY_PORT_50051_TCP_ADDR",
            "LICENSE_GATEWAY_SERVICE_HOST",
            "LICENSE_GATEWAY_SERVICE_PORT_GRPC",
            "LICENSE_GATEWAY_SANDBOX_SERVICE_HOST",
            "LICENSE_SERVER",
            "LICENSE_KEY",
            "GATEWAY_LICENSE",
            "LICENSES",
            "OTEL_SERVICE_NAME",
            "PATH",
        ] {
            assert!(!is_meant_for_us(theirs), "{theirs}");
        }
    }

    /// Every setting's variable, misspelt in each of these ways, is noticed, and mostly told right.
    #[test]
    fn no_misspelt_variable_is_silent() {
        let ways: [fn(&str) -> String; 12] = [
            |name| name.replace("__", "_"),
            |name| name.to_lowercase(),
            |name| name.replace("LICENSE_GATEWAY__", "LICENSE_GATEWAY_"),
            |name| name.replace("LICENSE", "LICENCE"),
            |name| name.replace("LICENSE_GATEWAY", "LICENSEGATEWAY"),
            |name| name.replace("GATEWAY", "GATEWY"),
            |name| name.replace("_GATEWAY__", "-GATEWAY--"),
            |name| name.replace('_', "."),
            |name| name[1..].to_owned(),
            |name| name.replace("LICENSE", "LICNESE"),
            |name| name.replace("GATEWAY__", "GATEWAY___"),
            |name| name.replace("LICENSE_GATEWAY__", "MY_LICENSE_GATEWAY__"),
        ];
        let mut tried = 0;
        for setting in settings::all() {
            let variable = setting.variable();
            for misspelt in ways.map(|way| way(&variable)) {
                assert!(is_meant_for_us(&misspelt) || misspelt.starts_with(VARIABLE_PREFIX), "{misspelt} is silent");
                assert_eq!(closest_variable(&misspelt).map(|setting| setting.name), Some(setting.name), "{misspelt}");
                tried += 1;
            }
        }
        assert!(tried >= 200, "{tried}");
    }
}
