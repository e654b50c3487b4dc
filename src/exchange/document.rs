//! One document that the gateway needs for itself, fetched from whoever has it: not from Central, and not on behalf of a
//! request. Used by [`crate::callers`] for the keys of tokens. Neither traced nor counted: those measures are of Central.

use std::{fs, io, path::PathBuf, time::Duration};

use reqwest::{
    Certificate, Client,
    header::{ACCEPT, AUTHORIZATION, HeaderValue},
    redirect, retry,
};
use secrecy::{ExposeSecret as _, SecretString};

use super::CONNECT_TIMEOUT;
use crate::config::KeyUrl;

/// The bound on a whole fetch: callers may wait for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most that is read. The largest sets of keys, with their certificates, are some tens of kilobytes.
const MAX_BYTES: usize = 256 * 1024;
/// Kubernetes answers 406 to who does not ask for the first, other servers know the second only.
const KEY_SET: &str = "application/jwk-set+json, application/json;q=0.9";

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A file that is needed for it cannot be read.
    #[error("{setting} {path:?} cannot be read")]
    Unreadable {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of authorities holds none.
    #[error("jwt.ca_file {path:?} holds no certificate in PEM form")]
    CaInvalid {
        /// The file.
        path: PathBuf,
    },
    /// The file of the token holds something else.
    #[error("jwt.token_file {path:?} holds no token")]
    TokenInvalid {
        /// The file.
        path: PathBuf,
    },
    /// The client cannot be made.
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
    /// Nobody answered, or not in full.
    #[error("there is no answer")]
    NoAnswer(#[source] reqwest::Error),
    /// The answer is not the document.
    #[error("the answer is HTTP {0}")]
    Status(u16),
    /// The answer is too long.
    #[error("the answer is longer than 256 KiB")]
    TooLong,
}

/// The key set at a URL, unread. Files are read anew every time: Kubernetes replaces both of them.
pub async fn key_set(from: &KeyUrl) -> Result<Vec<u8>, FetchError> {
    let mut builder = Client::builder()
        .user_agent(concat!("license-gateway/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .no_proxy()
        .https_only(from.url.scheme() == "https")
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(retry::never())
        .connect_timeout(CONNECT_TIMEOUT.min(TIMEOUT))
        .timeout(TIMEOUT);
    if let Some(path) = &from.ca_file {
        let pem = read("jwt.ca_file", path)?;
        match Certificate::from_pem_bundle(&pem) {
            Ok(certificates) if !certificates.is_empty() => builder = builder.tls_certs_only(certificates),
            _ => return Err(FetchError::CaInvalid { path: path.clone() }),
        }
    }
    let mut request = builder.build().map_err(FetchError::Client)?.get(from.url.clone()).header(ACCEPT, KEY_SET);
    if let Some(path) = &from.token_file {
        let text = String::from_utf8(read("jwt.token_file", path)?).unwrap_or_default();
        let token = SecretString::from(text.trim());
        let is_token = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())).ok();
        let Some(mut value) = value.filter(|_| is_token(token.expose_secret())) else {
            return Err(FetchError::TokenInvalid { path: path.clone() });
        };
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let no_answer = |error: reqwest::Error| FetchError::NoAnswer(error.without_url());
    let mut response = request.send().await.map_err(no_answer)?;
    if response.status().as_u16() != 200 {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(FetchError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn read(setting: &'static str, path: &PathBuf) -> Result<Vec<u8>, FetchError> {
    fs::read(path).map_err(|source| FetchError::Unreadable { setting, path: path.clone(), source })
}
