//! The refresh token that a person puts in place.

use std::{io, path::Path};

use serde::Deserialize;

use super::secret::Secret;

/// Reads the refresh token in a file: the bare token, or the JSON that Central's "Download Token" button gives.
/// None: there is no such file, or it is empty.
///
/// A problem is told in words that hold nothing of the file.
pub(super) async fn read(path: &Path) -> Result<Option<Secret>, &'static str> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("it is not text"),
        Err(_) => Err("it cannot be read"),
    }
}

fn parse(text: &str) -> Result<Option<Secret>, &'static str> {
    #[derive(Deserialize)]
    struct Downloaded {
        refresh_token: String,
    }

    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let token = if text.starts_with('{') {
        let downloaded: Downloaded = serde_json::from_str(text).map_err(|_| "it is JSON without a refresh_token")?;
        downloaded.refresh_token
    } else {
        text.to_owned()
    };
    if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err("it holds more than a refresh token");
    }
    Ok(Some(Secret::new(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_token_or_the_downloaded_json() {
        let table = [
            ("", Ok(None)),
            (" \n", Ok(None)),
            ("abc123\n", Ok(Some("abc123"))),
            (r#"{"access_token":"x","refresh_token":"abc123","expires_in":7200}"#, Ok(Some("abc123"))),
            (r#"{"access_token":"x"}"#, Err("it is JSON without a refresh_token")),
            ("{", Err("it is JSON without a refresh_token")),
            ("two words", Err("it holds more than a refresh token")),
            (r#"{"refresh_token":""}"#, Err("it holds more than a refresh token")),
        ];
        for (text, expected) in table {
            let read = parse(text).map(|seed| seed.map(|seed| seed.expose().to_owned()));
            assert_eq!(read, expected.map(|token| token.map(str::to_owned)), "{text}");
        }
    }
}
