//! A real `redis-server` for tests: in a directory of its own, on a Unix socket, ended when dropped.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long a server may take to begin; on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A server, running or not.
#[derive(Debug)]
pub(crate) struct RedisServer {
    dir: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// A server that syncs before it answers, ready for use.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further arguments, which override the usual ones.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self::prepare(arguments);
        server.run();
        server
    }

    /// A server that does not run yet.
    pub(crate) fn prepare(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let usual = ["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"];
        let arguments = usual.iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
        Self { dir, arguments, child: None }
    }

    /// Starts it (again), on the data it left; returns when it answers.
    pub(crate) fn run(&mut self) {
        self.kill();
        let log = File::create(self.log()).expect("a log file");
        let child = Command::new("redis-server")
            .args(&self.arguments)
            .arg("--dir")
            .arg(self.dir.path())
            .arg("--unixsocket")
            .arg(self.socket())
            .stdout(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => panic!("redis-server is missing: install the package redis-server"),
            _ => panic!("redis-server does not start: {error}"),
        }));
        let deadline = Instant::now() + READY_WITHIN;
        while !self.answers() {
            let has_ended = self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            assert!(
                !has_ended && Instant::now() < deadline,
                "redis-server is not ready: {}",
                fs::read_to_string(self.log()).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// As by a power cut for the process: SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended on its own.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It stops answering, and forgets nothing: SIGSTOP.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    /// It goes on: SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    /// `unix://…`
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Gives it a command of one word; it answers `OK`.
    #[allow(dead_code)] // the tests of the store itself have no use for it
    pub(crate) fn command(&self, command: &str) {
        let mut stream = UnixStream::connect(self.socket()).expect("it runs");
        stream.set_read_timeout(Some(READY_WITHIN)).expect("a time-out");
        write!(stream, "{command}\r\n").expect("it listens");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).expect("it answers");
        assert_eq!(&answer, b"+OK\r\n", "{command}");
    }

    /// Puts a value under a key.
    #[allow(dead_code)] // the tests of the store itself have no use for it
    pub(crate) fn set(&self, key: &str, value: &[u8]) {
        let mut stream = UnixStream::connect(self.socket()).expect("it runs");
        stream.set_read_timeout(Some(READY_WITHIN)).expect("a time-out");
        let mut command = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len()).into_bytes();
        command.extend_from_slice(value);
        command.extend_from_slice(b"\r\n");
        stream.write_all(&command).expect("it listens");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).expect("it answers");
        assert_eq!(&answer, b"+OK\r\n", "SET {key}");
    }

    /// Every write that it has taken, oldest first, as its append-only file tells it: commands with their arguments.
    #[allow(dead_code)] // the tests of the store itself have no use for it
    pub(crate) fn writes(&self) -> Vec<Vec<Vec<u8>>> {
        let file = self.dir.path().join("appendonlydir/appendonly.aof.1.incr.aof");
        let bytes = fs::read(file).expect("it appends");
        let mut rest = bytes.as_slice();
        // What is being written at this moment is not told yet.
        std::iter::from_fn(|| {
            let count = number(&mut rest, b'*')?;
            (0..count)
                .map(|_| {
                    let length = number(&mut rest, b'$')?;
                    let argument = rest.get(..length)?.to_vec();
                    rest = rest.get(length + 2..)?;
                    Some(argument)
                })
                .collect()
        })
        .collect()
    }

    /// The socket it listens on.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn answers(&self) -> bool {
        let ask = || {
            let mut stream = UnixStream::connect(self.socket())?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        matches!(ask(), Ok(answer) if matches!(&answer, b"+PONG" | b"-NOAU"))
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("it runs");
        let status = Command::new("kill").arg(signal).arg(child.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal}");
    }
}

/// Reads a line such as `*3` or `$12`.
#[allow(dead_code)] // see `writes`
fn number(rest: &mut &[u8], kind: u8) -> Option<usize> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    let (line, after) = (&rest[..end], &rest[end + 2..]);
    *rest = after;
    std::str::from_utf8(line.strip_prefix(&[kind])?).ok()?.parse().ok()
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
