//! Models and files from a hub, through the `hf-hub` crate: cache, token, endpoint, offline mode, progress.
//!
//! The cache is the one that every hub client shares (`models--org--name/{refs,snapshots,blobs}`). What is whole in it is
//! used without asking the hub. Otherwise the revision is first pinned to a commit and every file is taken from that
//! commit, weights last, so that an interrupted download never looks whole.

use crate::{ModelError, format::huggingface::shard_names, text};
use hf_hub::{
    Cache, CacheRepo, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::IsTerminal,
    path::{Component, Path, PathBuf},
};

/// Files that a model can't do without, beside the weights.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files that are brought along where the repository has them.
const OPTIONAL: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "quantize_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A broken connection is taken up again where it broke this many times.
const ATTEMPTS: usize = 4;

/// `org/name[@revision]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub name: String,
    /// Branch, tag or commit; `main` unless given.
    pub revision: String,
}

impl HubId {
    /// Parses `org/name[@revision]`; `None` where the text has another shape.
    pub fn parse(reference: &str) -> Option<Self> {
        let (name, revision) = reference.split_once('@').unwrap_or((reference, "main"));
        let (organization, model) = name.split_once('/')?;
        let whole = is_name(organization) && is_name(model) && revision.split('/').all(is_name);
        whole.then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// Letters, digits, `-`, `_` and `.`, the latter not at the beginning and not twice.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 200 && text.chars().all(plain) && !text.starts_with('.') && !text.contains("..")
}

/// A relative path that stays in its folder, of characters that mean themselves in an address.
fn is_repository_path(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"\\?#%\"<>^`{|}".contains(c);
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    path.chars().all(plain) && inside && path.split('/').all(|part| !part.is_empty() && part != ".")
}

/// Where the hub is and how to talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// The hub's address; `None` is the public hub.
    pub endpoint: Option<String>,
    /// Sent with every request.
    pub token: Option<String>,
    /// Folder of the shared cache.
    pub cache: PathBuf,
    /// Use what is cached and ask nobody.
    pub offline: bool,
    /// Show a bar per file on the terminal.
    pub progress: bool,
}

impl HubSettings {
    /// From `HF_ENDPOINT`, `HF_TOKEN` (or the file `HF_TOKEN_PATH`, or `token` in the cache's parent folder),
    /// `HF_HUB_CACHE` (or `hub` in `HF_HOME` or in the user's cache folder), `HF_HUB_OFFLINE` and
    /// `HF_HUB_DISABLE_PROGRESS_BARS`.
    pub fn from_environment() -> Result<Self, ModelError> {
        let settings = Self::from_variables(|name| std::env::var_os(name))?;
        Ok(Self { progress: settings.progress && std::io::stderr().is_terminal(), ..settings })
    }

    /// From variables, wherever they come from.
    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ModelError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_owned());
        let on = |name: &str| {
            text(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()))
        };
        let path = |name: &str| set(name).map(PathBuf::from);
        let shared = || path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        let home = path("HF_HOME").or_else(|| shared().map(|folder| folder.join("huggingface")));
        let Some(cache) = path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|home| home.join("hub"))) else {
            return Err(ModelError::Reference {
                reference: "hub cache".into(),
                what: "no folder is known for downloads; set HF_HOME".into(),
            });
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let stored = || Some(fs::read_to_string(token_file?).ok()?.trim().to_owned());
        Ok(Self {
            endpoint: text("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            token: text("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty()),
            cache,
            offline: on("HF_HUB_OFFLINE"),
            progress: !on("HF_HUB_DISABLE_PROGRESS_BARS"),
        })
    }
}

/// Brings a model's config, tokenizer and safetensors files into the cache; returns the snapshot's folder.
pub fn model_folder(id: &HubId) -> Result<PathBuf, ModelError> {
    Hub::new(HubSettings::from_environment()?).model_folder(id)
}

/// Brings one file of a data set (`org/name/path/in/repo[@revision]`) into the cache.
pub fn dataset_file(id: &HubId, path: &str) -> Result<PathBuf, ModelError> {
    Hub::new(HubSettings::from_environment()?).dataset_file(id, path)
}

/// The files of a data set, at the commit that they are taken from.
pub fn dataset_files(id: &HubId) -> Result<DatasetFiles, ModelError> {
    Hub::new(HubSettings::from_environment()?).dataset_files(id)
}

/// What a data set's repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetFiles {
    /// The repository, its revision pinned to a commit.
    pub id: HubId,
    /// Paths in it, sorted.
    pub paths: Vec<String>,
}

/// A hub and the cache in front of it.
pub struct Hub {
    settings: HubSettings,
}

/// A repository at one revision.
struct Repository<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    kind: RepoType,
}

impl Hub {
    /// A hub with these settings.
    pub fn new(settings: HubSettings) -> Self {
        Self { settings }
    }

    /// Brings a model's config, tokenizer and safetensors files into the cache; returns the snapshot's folder.
    pub fn model_folder(&self, id: &HubId) -> Result<PathBuf, ModelError> {
        let repository = Repository { hub: self, id, kind: RepoType::Model };
        let missing = match repository.snapshot() {
            Some(folder) => match missing_file(&folder)? {
                None => return Ok(folder),
                Some(missing) => missing,
            },
            None => REQUIRED[0].to_owned(),
        };
        if self.settings.offline {
            return Err(repository.not_cached(&missing));
        }
        repository.download_model()
    }

    /// Lists the files of a data set: as the hub has them, or in offline mode those in the cache.
    pub fn dataset_files(&self, id: &HubId) -> Result<DatasetFiles, ModelError> {
        let repository = Repository { hub: self, id, kind: RepoType::Dataset };
        let (commit, paths) =
            if self.settings.offline { repository.cached_list()? } else { repository.remote_list()? };
        let mut paths: Vec<String> = paths.into_iter().filter(|path| is_repository_path(path)).collect();
        paths.sort();
        Ok(DatasetFiles { id: HubId { name: id.name.clone(), revision: commit }, paths })
    }

    /// Brings the file at `path` in a data set into the cache.
    pub fn dataset_file(&self, id: &HubId, path: &str) -> Result<PathBuf, ModelError> {
        let repository = Repository { hub: self, id, kind: RepoType::Dataset };
        if !is_repository_path(path) {
            return Err(repository.error(format!("`{path}` is not the path of a file in a repository")));
        }
        if let Some(file) = repository.snapshot().map(|folder| folder.join(path)).filter(|file| file.is_file()) {
            return Ok(file);
        }
        if self.settings.offline {
            return Err(repository.not_cached(path));
        }
        let remote = repository.remote(&id.revision)?;
        repository.download(&remote, path)
    }
}

/// What a snapshot lacks to be opened as a model; `None` if it is whole.
fn missing_file(folder: &Path) -> Result<Option<String>, ModelError> {
    let absent = |name: &&str| !folder.join(name).is_file();
    if let Some(name) = REQUIRED.iter().find(|name| absent(name)) {
        return Ok(Some((*name).to_owned()));
    }
    if absent(&INDEX) {
        return Ok(absent(&SINGLE).then(|| SINGLE.to_owned()));
    }
    let shards = shard_names(&folder.join(INDEX))?;
    Ok(shards.into_values().find(|shard| absent(&shard.as_str())))
}

impl Repository<'_> {
    fn error(&self, what: impl Into<String>) -> ModelError {
        ModelError::Hub {
            repository: format!("{}@{}", self.id.name, self.id.revision),
            endpoint: self.hub.settings.endpoint.clone().unwrap_or_else(|| "the hub".into()),
            what: what.into(),
        }
    }

    fn not_cached(&self, file: &str) -> ModelError {
        self.error(format!(
            "offline mode is on (HF_HUB_OFFLINE) and `{file}` is not in the cache {}; download it once with offline \
             mode off",
            self.hub.settings.cache.display()
        ))
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.name.clone(), self.kind, revision.to_owned())
    }

    fn cached(&self, revision: &str) -> CacheRepo {
        Cache::new(self.hub.settings.cache.clone()).repo(self.at(revision))
    }

    /// The folder of the commit that the cache holds for the revision.
    fn snapshot(&self) -> Option<PathBuf> {
        let cached = self.cached(&self.id.revision);
        let reference = self.hub.settings.cache.join(self.at("").folder_name()).join("refs").join(&self.id.revision);
        let commit = fs::read_to_string(reference).ok().map(|commit| commit.trim().to_owned());
        let commit = commit.filter(|commit| is_name(commit)).unwrap_or_else(|| self.id.revision.clone());
        Some(cached.pointer_path(&commit)).filter(|folder| folder.is_dir())
    }

    fn remote(&self, revision: &str) -> Result<ApiRepo, ModelError> {
        let settings = &self.hub.settings;
        let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_progress(settings.progress)
            .with_token(settings.token.clone())
            .with_user_agent("caliper", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(|error| self.failed("", &error))?;
        Ok(api.repo(self.at(revision)))
    }

    /// The commit that the hub has for the revision, remembered for offline mode, and its files.
    fn remote_list(&self) -> Result<(String, Vec<String>), ModelError> {
        let info = self.remote(&self.id.revision)?.info().map_err(|error| self.failed("", &error))?;
        if !is_name(&info.sha) {
            return Err(self.error(format!("the hub names the commit `{}`, which can't be one", info.sha)));
        }
        let reference = self.cached(&self.id.revision);
        reference.create_ref(&info.sha).map_err(ModelError::io(&self.hub.settings.cache))?;
        Ok((info.sha, info.siblings.into_iter().map(|file| file.rfilename).collect()))
    }

    /// The commit that the cache has for the revision, and what is there of it.
    fn cached_list(&self) -> Result<(String, Vec<String>), ModelError> {
        let folder = self.snapshot().ok_or_else(|| self.not_cached("any file of it"))?;
        let commit = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (mut paths, mut folders) = (Vec::new(), vec![folder.clone()]);
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).map_err(ModelError::io(&next))? {
                let path = entry.map_err(ModelError::io(&next))?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = path.strip_prefix(&folder).ok().and_then(Path::to_str) {
                    paths.push(name.replace(std::path::MAIN_SEPARATOR, "/"));
                }
            }
        }
        Ok((commit, paths))
    }

    fn download_model(&self) -> Result<PathBuf, ModelError> {
        let info = self.remote(&self.id.revision)?.info().map_err(|error| self.failed("", &error))?;
        if !is_name(&info.sha) {
            return Err(self.error(format!("the hub names the commit `{}`, which can't be one", info.sha)));
        }
        let offered: BTreeSet<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let weights = [INDEX, SINGLE].into_iter().find(|name| offered.contains(name));
        let Some(weights) = weights else {
            return Err(self.error(format!("there is neither `{SINGLE}` nor `{INDEX}`; only safetensors are read")));
        };
        if let Some(name) = REQUIRED.iter().find(|name| !offered.contains(*name)) {
            return Err(self.error(format!("there is no `{name}`, which a model needs")));
        }
        let commit = self.remote(&info.sha)?;
        for name in OPTIONAL.iter().filter(|name| offered.contains(*name)).chain(&REQUIRED) {
            self.bring(&commit, &info.sha, name)?;
        }
        let first = self.bring(&commit, &info.sha, weights)?;
        if weights == INDEX {
            for shard in shard_names(&first)?.into_values().collect::<BTreeSet<_>>() {
                self.bring(&commit, &info.sha, &shard)?;
            }
        }
        let reference = self.cached(&self.id.revision);
        reference.create_ref(&info.sha).map_err(ModelError::io(&self.hub.settings.cache))?;
        Ok(reference.pointer_path(&info.sha))
    }

    /// The file from the cache or else from the hub.
    fn bring(&self, remote: &ApiRepo, commit: &str, name: &str) -> Result<PathBuf, ModelError> {
        let path = self.cached(commit).pointer_path(commit).join(name);
        if path.is_file() { Ok(path) } else { self.download(remote, name) }
    }

    /// Downloads a file, taking up a broken connection where it broke, and checks it where the hub gives its hash.
    fn download(&self, remote: &ApiRepo, name: &str) -> Result<PathBuf, ModelError> {
        let mut attempts = 1;
        let path = loop {
            match remote.download(name) {
                Ok(path) => break path,
                Err(error) if attempts >= ATTEMPTS => return Err(self.failed(name, &error)),
                Err(error) if is_passing(&error) => {}
                Err(error) if status(&error) == Some(416) || matches!(error, ApiError::InvalidResume) => {
                    self.forget_partial_files()?;
                }
                Err(error) => return Err(self.failed(name, &error)),
            }
            attempts += 1;
        };
        // The name of a large file's blob is its hash.
        let blob = fs::canonicalize(&path).map_err(ModelError::io(&path))?;
        let named = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if named.len() == 64 && named.bytes().all(|b| b.is_ascii_hexdigit()) && text::sha256_of_file(&blob)? != named {
            for broken in [&path, &blob] {
                fs::remove_file(broken).map_err(ModelError::io(broken))?;
            }
            return Err(self.error(format!("`{name}` arrived damaged and was removed; try again")));
        }
        Ok(path)
    }

    /// Removes what earlier downloads left behind and the hub can't continue.
    fn forget_partial_files(&self) -> Result<(), ModelError> {
        let blobs = self.cached("").blob_path("");
        for entry in fs::read_dir(&blobs).map_err(ModelError::io(&blobs))? {
            let path = entry.map_err(ModelError::io(&blobs))?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).map_err(ModelError::io(&path))?;
            }
        }
        Ok(())
    }

    /// What a failed request means. `file` is empty where the whole repository was asked for.
    fn failed(&self, file: &str, error: &ApiError) -> ModelError {
        let thing = if file.is_empty() { String::new() } else { format!("`{file}`: ") };
        let token = if self.hub.settings.token.is_some() { "the token" } else { "no token" };
        self.error(match (status(error), error) {
            (Some(code @ (401 | 403)), _) => format!(
                "{thing}access was refused (status {code}, with {token}); the repository may be private, gated or \
                 misspelt; set HF_TOKEN to a token that may read it"
            ),
            (Some(404), _) => {
                format!("{thing}not found (status 404); check the name, the revision and the path of the file")
            }
            (Some(code), _) => format!("{thing}the hub answered with status {code}; try again later"),
            (None, ApiError::LockAcquisition(lock)) => {
                format!("{thing}another process is downloading it ({}); wait for it and start again", lock.display())
            }
            (None, _) => format!("{thing}{error}; check the connection, or use offline mode (HF_HUB_OFFLINE=1)"),
        })
    }
}

/// The HTTP status of a refused request. The crate below doesn't give it away but in its message.
fn status(error: &ApiError) -> Option<u16> {
    let message = error.to_string();
    let (_, code) = message.split_once("http status: ")?;
    code.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether the connection broke, so that another attempt may bring the rest.
fn is_passing(error: &ApiError) -> bool {
    matches!(error, ApiError::IoError(_) | ApiError::RequestError(_)) && status(error).is_none_or(|code| code >= 500)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = |text: &str| HubId::parse(text).map(|id| (id.name, id.revision));
        assert_eq!(id("org/name"), Some(("org/name".into(), "main".into())));
        assert_eq!(id("a-b/c.d_1@refs/pr/1"), Some(("a-b/c.d_1".into(), "refs/pr/1".into())));
        for path in ["data/train-0.parquet", "a=b/c.json"] {
            assert!(is_repository_path(path), "{path}");
        }
        for path in ["", "/a", "../a", "a/../b", "a//b", "./a", "a/./b", "a b", "a?b", "a\\b", "a/"] {
            assert!(!is_repository_path(path), "{path}");
        }
        for other in
            ["", "name", "a/b/c", "/b", "a/", "../b", "a/..", "a/b@", "a/b@../x", "a/b@/x", "a/b@x@y", "a b/c", "a/.b"]
        {
            assert_eq!(id(other), None, "{other}");
        }
    }

    #[test]
    fn settings_follow_the_variables() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "  secret\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let settings = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            HubSettings::from_variables(|name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.into()))
        };
        let plain = settings(&[("HOME", "/h")]).unwrap();
        assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint, plain.token, plain.offline, plain.progress), (None, None, false, true));
        let own =
            settings(&[("HF_HOME", home), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "True")]).unwrap();
        assert_eq!(own.cache, folder.path().join("hub"));
        assert_eq!(
            (own.endpoint.as_deref(), own.token.as_deref(), own.offline),
            (Some("http://mirror"), Some("secret"), true)
        );
        let more =
            settings(&[("HF_HOME", home), ("HF_TOKEN", "t"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert_eq!((more.cache.as_path(), more.token.as_deref(), more.offline), (Path::new("/c"), Some("t"), false));
        assert!(settings(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }
}
