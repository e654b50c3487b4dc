//! What the text of a setting may be. Each function returns what it stands for, or the end of a sentence that begins
//! with the value.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::Access;
use url::Url;

#[allow(clippy::unnecessary_wraps)] // one of the parsers that there are
pub(super) fn any(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

pub(super) fn visible(text: &str) -> Result<String, String> {
    if text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("holds a blank or a character that is not visible ASCII; copy it again".to_owned())
    }
}

/// The path of a file that holds this part, or `otherwise`.
pub(super) fn file_with(part: &str, text: &str, otherwise: &str) -> Result<PathBuf, String> {
    if read(text)?.contains(part) { Ok(text.into()) } else { Err(otherwise.to_owned()) }
}

pub(super) fn secret_file(text: &str) -> Result<PathBuf, String> {
    if read(text)?.trim().is_empty() {
        Err("is an empty file; write the secret into it".to_owned())
    } else {
        Ok(text.into())
    }
}

/// A directory that is there, or may be made: what needs it makes it. Whether it can be written is another question: the
/// commands that only read must say so in their own words ([`writable`]).
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    match nearest(Path::new(text)) {
        Some((path, found)) if !found.is_dir() => {
            let is_itself = path == Path::new(text);
            let what = if is_itself { "is not a directory" } else { "lies below something that is not a directory" };
            Err(format!("{what}; several files are kept there"))
        }
        _ => Ok(text.into()),
    }
}

/// What there is of a path already. None: not even the working directory can be looked at.
fn nearest(path: &Path) -> Option<(PathBuf, fs::Metadata)> {
    let here = |path: &Path| if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() };
    path.ancestors().map(here).find_map(|path| fs::metadata(&path).ok().map(|found| (path, found)))
}

/// Whether this user may write to a directory, or make it.
pub(crate) fn writable(path: &Path) -> Result<(), String> {
    let Some((nearest, _)) = nearest(path) else { return Ok(()) };
    let is_itself = nearest == path;
    match rustix::fs::access(&nearest, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Ok(()),
        Err(error) if is_itself => {
            Err(format!("cannot be written to by this user ({error}); change its owner or mode"))
        }
        Err(error) => Err(format!("cannot be made by this user ({error}); make it, and let this user own it")),
    }
}

/// An http or https URL without a login. `example` shows what else it may hold.
pub(super) fn http_url(text: &str, example: &str) -> Result<Url, String> {
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => url,
        Ok(_) | Err(_) => return Err(format!("is not a URL of this kind; write it like {example}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or a password; remove everything up to the @".to_owned());
    }
    Ok(url)
}

/// An http or https URL of nothing but scheme, host and port.
pub(super) fn origin_url(text: &str) -> Result<Url, String> {
    let url = http_url(text, "https://host:443")?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not have a query or a fragment; remove everything after the host and port".to_owned());
    }
    if url.path() != "/" {
        return Err("must not have a path, because paths are appended to it; remove what follows the host".to_owned());
    }
    Ok(url)
}

/// Whether a text is surely a path and no secret: it begins with a directory that exists.
pub(super) fn is_surely_a_path(text: &str) -> bool {
    let is_nowhere = |path: &Path| path == Path::new("/") || path == Path::new("");
    Path::new(text).ancestors().skip(1).any(|path| !is_nowhere(path) && path.is_dir())
}

/// The text of a file.
pub(super) fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "does not exist; create the file or correct the path".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be read by this user; change its owner or mode".to_owned(),
        io::ErrorKind::IsADirectory => "is a directory; name the file in it".to_owned(),
        io::ErrorKind::InvalidData => "is not a text file".to_owned(),
        _ => format!("cannot be read: {error}"),
    })
}
