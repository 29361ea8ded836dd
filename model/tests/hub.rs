//! The hub client against a server on this machine.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

#[path = "support/hub_server.rs"]
mod hub_server;

use hub_server::{COMMIT, Server, sha256};
use model::hub::{Hub, HubId, HubSettings};
use std::path::Path;

const INDEX: &[u8] = br#"{"weight_map":{"a":"w-1.safetensors","b":"w-2.safetensors"}}"#;

impl Server {
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

#[test]
fn a_data_set_s_files_are_listed_and_pinned_and_remembered_for_offline_mode() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(&[("main/test.jsonl", b"{}"), ("README.md", b"x")]);
    let hub = Hub::new(server.settings(cache.path()));
    let listed = hub.dataset_files(&id("org/texts")).unwrap();
    assert_eq!(
        (listed.id.revision.as_str(), listed.paths),
        (COMMIT, vec!["README.md".into(), "main/test.jsonl".into()])
    );
    hub.dataset_file(&listed.id, "main/test.jsonl").unwrap();
    let offline = Hub::new(HubSettings { offline: true, ..server.settings(cache.path()) });
    let cached = offline.dataset_files(&id("org/texts")).unwrap();
    assert_eq!((cached.id.revision.as_str(), cached.paths), (COMMIT, vec!["main/test.jsonl".to_owned()]));
    assert!(offline.dataset_files(&id("org/other")).unwrap_err().to_string().contains("HF_HUB_OFFLINE"));
    assert!(hub.dataset_files(&id("org/none")).unwrap_err().to_string().contains("404"));
}
