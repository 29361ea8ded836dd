//! A hub on this machine: models and data sets as files, with what a test wants to go wrong.

use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server holds and what it was asked.
#[derive(Default)]
pub(crate) struct Served {
    /// Path in the repository to content.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Request line and authorization of every request.
    pub(crate) requests: Vec<(String, Option<String>)>,
    /// Requests without this token are refused.
    pub(crate) token: Option<String>,
    /// The next transfer of a whole file ends after this many bytes.
    pub(crate) cut: Option<usize>,
    /// Hashes are wrong.
    pub(crate) lies: bool,
}

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) served: Arc<Mutex<Served>>,
}

impl Server {
    pub(crate) fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        let served = Arc::new(Mutex::new(Served { files, ..Served::default() }));
        let shared = Arc::clone(&served);
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &shared);
            }
        });
        Self { address, served }
    }

    pub(crate) fn requests(&self) -> usize {
        self.served.lock().unwrap().requests.len()
    }
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Reads one request and answers it.
fn answer(mut stream: TcpStream, served: &Mutex<Served>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let mut pairs = headers.iter().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut served = served.lock().unwrap();
    served.requests.push((request.clone(), header("authorization")));
    let path = request.split(' ').nth(1).unwrap_or_default();
    let wanted = served.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && header("authorization") != wanted {
        return status(&mut stream, "401 Unauthorized");
    }
    if ["models/org/tiny", "datasets/org/texts"].iter().any(|name| path.starts_with(&format!("/api/{name}/revision/")))
    {
        let files: Vec<_> = served.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": files }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        return stream.write_all((head + &body).as_bytes()).unwrap_or_default();
    }
    let resolved = path.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/')).map(|(_, name)| name);
    match resolved.and_then(|name| served.files.get(name)).cloned() {
        None => status(&mut stream, "404 Not Found"),
        Some(content) => part(&mut stream, &content, &header("range").unwrap_or_default(), &mut served),
    }
}

fn status(stream: &mut TcpStream, line: &str) {
    let head = format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap_or_default();
}

/// Answers a request for a range of a file.
fn part(stream: &mut TcpStream, content: &[u8], range: &str, served: &mut Served) {
    let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let first: usize = first.parse().unwrap();
    if first >= content.len() {
        return status(stream, "416 Range Not Satisfiable");
    }
    let last = last.parse().unwrap_or(content.len() - 1).min(content.len() - 1);
    let hash = if served.lies { "0".repeat(64) } else { sha256(content) };
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"{hash}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {}\r\n\
         Content-Range: bytes {first}-{last}/{}\r\nConnection: close\r\n\r\n",
        last + 1 - first,
        content.len()
    );
    let mut body = &content[first..=last];
    if last > first
        && let Some(cut) = served.cut.take()
    {
        body = &body[..cut.min(body.len())];
    }
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap_or_default();
}
