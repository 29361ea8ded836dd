//! The hub client against a server on this machine.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

use model::hub::{Hub, HubId, HubSettings};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const INDEX: &[u8] = br#"{"weight_map":{"a":"w-1.safetensors","b":"w-2.safetensors"}}"#;

/// What a server holds and what it was asked.
#[derive(Default)]
struct Served {
    /// Path in the repository to content.
    files: BTreeMap<String, Vec<u8>>,
    /// Request line and authorization of every request.
    requests: Vec<(String, Option<String>)>,
    /// Requests without this token are refused.
    token: Option<String>,
    /// The next transfer of a whole file ends after this many bytes.
    cut: Option<usize>,
    /// Hashes are wrong.
    lies: bool,
}

struct Server {
    address: String,
    served: Arc<Mutex<Served>>,
}

impl Server {
    fn start(files: &[(&str, &[u8])]) -> Self {
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

    fn requests(&self) -> usize {
        self.served.lock().unwrap().requests.len()
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub::new(self.settings(cache))
    }

    fn settings(&self, cache: &Path) -> HubSettings {
        HubSettings {
            endpoint: Some(self.address.clone()),
            token: None,
            cache: cache.to_path_buf(),
            offline: false,
            progress: false,
        }
    }
}

fn sha256(content: &[u8]) -> String {
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
    if path.starts_with("/api/models/org/tiny/revision/") {
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

fn id(text: &str) -> HubId {
    HubId::parse(text).unwrap()
}

fn refusal(hub: &Hub, name: &str) -> String {
    hub.model_folder(&id(name)).unwrap_err().to_string()
}

fn sharded() -> Server {
    Server::start(&[
        ("README.md", b"not wanted"),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("generation_config.json", b"{}"),
        ("model.safetensors.index.json", INDEX),
        ("w-1.safetensors", b"one"),
        ("w-2.safetensors", b"two"),
    ])
}

#[test]
fn a_model_is_downloaded_once() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let folder = server.hub(cache.path()).model_folder(&id("org/tiny")).unwrap();
    for (name, content) in [("config.json", "{}"), ("generation_config.json", "{}"), ("w-2.safetensors", "two")] {
        assert_eq!(std::fs::read_to_string(folder.join(name)).unwrap(), content, "{name}");
    }
    assert!(!folder.join("README.md").exists());
    assert!(folder.ends_with(format!("models--org--tiny/snapshots/{COMMIT}")));
    let before = server.requests();
    assert_eq!(server.hub(cache.path()).model_folder(&id("org/tiny")).unwrap(), folder);
    let offline = Hub::new(HubSettings { offline: true, ..server.settings(cache.path()) });
    assert_eq!(offline.model_folder(&id("org/tiny")).unwrap(), folder);
    assert_eq!(offline.model_folder(&id(&format!("org/tiny@{COMMIT}"))).unwrap(), folder);
    assert_eq!(server.requests(), before, "the cache is used without asking");
}

#[test]
fn every_file_comes_from_one_commit() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    server.hub(cache.path()).model_folder(&id("org/tiny@refs/pr/1")).unwrap();
    let served = server.served.lock().unwrap();
    let (first, rest) = served.requests.split_first().unwrap();
    assert!(first.0.contains("/api/models/org/tiny/revision/refs%2Fpr%2F1"), "{}", first.0);
    let prefix = format!("/org/tiny/resolve/{COMMIT}/");
    assert!(rest.iter().all(|(request, _)| request.contains(&prefix)), "{rest:?}");
}

#[test]
fn the_token_is_sent_and_its_absence_explained() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    server.served.lock().unwrap().token = Some("secret".into());
    let error = refusal(&server.hub(cache.path()), "org/tiny");
    assert!(error.contains("401") && error.contains("HF_TOKEN") && error.contains("no token"), "{error}");
    let with_token = Hub::new(HubSettings { token: Some("secret".into()), ..server.settings(cache.path()) });
    with_token.model_folder(&id("org/tiny")).unwrap();
    let served = server.served.lock().unwrap();
    let sent = served.requests.iter().filter(|(_, token)| token.as_deref() == Some("Bearer secret")).count();
    assert_eq!(sent, served.requests.len() - 1);
}

#[test]
fn what_is_missing_is_named() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let absent = refusal(&server.hub(cache.path()), "org/other");
    for part in ["404", "org/other@main", &server.address] {
        assert!(absent.contains(part), "{absent}");
    }
    let offline = Hub::new(HubSettings { offline: true, ..server.settings(cache.path()) });
    let before = server.requests();
    assert!(refusal(&offline, "org/tiny").contains("`config.json` is not in the cache"));
    assert_eq!(server.requests(), before);
    let folder = server.hub(cache.path()).model_folder(&id("org/tiny")).unwrap();
    std::fs::remove_file(folder.join("w-2.safetensors")).unwrap();
    assert!(refusal(&offline, "org/tiny").contains("`w-2.safetensors` is not in the cache"));
    server.served.lock().unwrap().files.remove("model.safetensors.index.json");
    let cache = tempfile::tempdir().unwrap();
    assert!(refusal(&server.hub(cache.path()), "org/tiny").contains("only safetensors are read"));
    let nowhere = HubSettings { endpoint: Some("http://127.0.0.1:1".into()), ..server.settings(cache.path()) };
    assert!(refusal(&Hub::new(nowhere), "org/tiny").contains("check the connection"));
}

#[test]
fn an_index_that_leads_out_of_the_folder_is_refused() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let evil = br#"{"weight_map":{"a":"../../../evil.safetensors"}}"#.to_vec();
    server.served.lock().unwrap().files.insert("model.safetensors.index.json".into(), evil);
    let error = refusal(&server.hub(cache.path()), "org/tiny");
    assert!(error.contains("../../../evil.safetensors"), "{error}");
}

#[test]
fn a_broken_transfer_is_taken_up_again_and_a_damaged_one_removed() {
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let server = Server::start(&[("data/big.bin", &content), ("next.bin", b"next")]);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    server.served.lock().unwrap().cut = Some(1000);
    let path = hub.dataset_file(&id("org/set"), "data/big.bin").unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    let before = server.requests();
    assert_eq!(hub.dataset_file(&id("org/set"), "data/big.bin").unwrap(), path);
    assert_eq!(server.requests(), before);
    let first = server.served.lock().unwrap().requests[0].0.clone();
    assert!(first.contains("/datasets/org/set/resolve/main/data/big.bin"), "{first}");
    server.served.lock().unwrap().lies = true;
    let error = hub.dataset_file(&id("org/set"), "next.bin").unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    server.served.lock().unwrap().lies = false;
    assert_eq!(std::fs::read(hub.dataset_file(&id("org/set"), "next.bin").unwrap()).unwrap(), b"next");
    let error = hub.dataset_file(&id("org/set"), "../x").unwrap_err().to_string();
    assert!(error.contains("not the path"), "{error}");
}

#[test]
fn leftovers_that_cannot_be_continued_are_thrown_away() {
    let server = Server::start(&[("data.bin", b"whole")]);
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("datasets--org--set/blobs");
    for leftover in [&b"whole"[..], b"much longer than the file"] {
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.part", sha256(b"whole"))), leftover).unwrap();
        let path = server.hub(cache.path()).dataset_file(&id("org/set"), "data.bin").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"whole");
        std::fs::remove_dir_all(cache.path().join("datasets--org--set")).unwrap();
    }
}
