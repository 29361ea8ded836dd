//! Sources to machine code by NVRTC, kept on disk.
//!
//! The cache is `$CALIPER_CUDA_CACHE`, else `caliper/cuda` in the user's cache folder. An entry's name is the SHA-256 of
//! everything that the code depends on (source, options with the architecture, NVRTC's version), its content the SHA-256
//! of the code and the code, so that a damaged entry shows and is compiled anew. Entries are written beside their place
//! and renamed into it. A cache that can't be used costs time and nothing else.

use super::{CudaError, sources::Source};
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::{
    ffi::{CStr, CString},
    io::Write,
    path::{Path, PathBuf},
};

/// Options for every source. Nothing is fused that isn't written so: solvers must give the CPU's integers.
const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// Bytes of a checksum.
const SUM: usize = 32;

/// Compiles for one architecture.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// As `10 * major + minor`.
    architecture: u32,
    version: (i32, i32),
    cache: Option<PathBuf>,
}

impl Compiler {
    /// Finds NVRTC and the cache's place.
    pub(crate) fn new(architecture: u32) -> Result<Self, CudaError> {
        // SAFETY: loading a library runs its constructors; NVRTC's are harmless, as every user of it relies on.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoLibrary { library: "nvrtc", package: "nvidia-cuda-nvrtc-cu12" });
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to numbers that outlive the call, which only writes them.
        let version = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        version.result().map_err(|error| CudaError::Compile {
            file: "nvrtcVersion".to_owned(),
            architecture,
            log: format!("{error:?}"),
        })?;
        Ok(Self { architecture, version: (major, minor), cache: cache_folder() })
    }

    /// Machine code of `source`, from the cache where it is there and whole.
    pub(crate) fn machine_code(&self, source: &Source) -> Result<Vec<u8>, CudaError> {
        let text = source.text();
        let place = self.cache.as_deref().map(|folder| folder.join(self.key(&text)));
        if let Some(code) = place.as_deref().and_then(read_entry) {
            return Ok(code);
        }
        let code = self.compile(source.file, text)?;
        if let Some(place) = place {
            // Not being able to write only means compiling again.
            let _ = write_entry(&place, &code);
        }
        Ok(code)
    }

    fn options(&self) -> Vec<String> {
        let architecture = format!("--gpu-architecture=sm_{}", self.architecture);
        OPTIONS.iter().map(|option| (*option).to_owned()).chain([architecture]).collect()
    }

    fn key(&self, text: &str) -> String {
        let mut hash = Sha256::new();
        let (major, minor) = self.version;
        for part in [text, &self.options().join(" "), &format!("{major}.{minor}")] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut key = String::new();
        for byte in hash.finalize() {
            key.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            key.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        key
    }

    fn compile(&self, file: &str, text: String) -> Result<Vec<u8>, CudaError> {
        let failure = |log: String| CudaError::Compile { file: file.to_owned(), architecture: self.architecture, log };
        let text = CString::new(text).map_err(|error| failure(error.to_string()))?;
        let name = CString::new(file).map_err(|error| failure(error.to_string()))?;
        let program = Program::new(&text, &name).map_err(|error| failure(format!("{error:?}")))?;
        program.compile(&self.options()).map_err(failure)
    }
}

/// What the assembler says of the registers and the memory that each kernel of `source` takes on `architecture` (as
/// `10 * major + minor`). Needs NVRTC and no device.
pub fn resources(source: &Source, architecture: u32) -> Result<String, CudaError> {
    let compiler = Compiler { cache: None, ..Compiler::new(architecture)? };
    let failure = |log| CudaError::Compile { file: source.file.to_owned(), architecture, log };
    let text = CString::new(source.text()).map_err(|error| failure(error.to_string()))?;
    let name = CString::new(source.file).map_err(|error| failure(error.to_string()))?;
    let program = Program::new(&text, &name).map_err(|error| failure(format!("{error:?}")))?;
    let options = [compiler.options(), vec!["--ptxas-options=-v".to_owned()]].concat();
    program.compile(&options).map_err(failure)?;
    Ok(program.log())
}

/// A program of NVRTC's, destroyed with this.
struct Program<'a> {
    handle: sys::nvrtcProgram,
    /// NVRTC may point into them.
    _text: &'a CStr,
    _name: &'a CStr,
}

impl<'a> Program<'a> {
    fn new(text: &'a CStr, name: &'a CStr) -> Result<Self, result::NvrtcError> {
        Ok(Self { handle: result::create_program(text, Some(name))?, _text: text, _name: name })
    }

    /// The machine code, or the compiler's log.
    fn compile(&self, options: &[String]) -> Result<Vec<u8>, String> {
        // SAFETY: the program was created by `new` and is destroyed by `drop`, not before; this holds for each call
        // here. The code is written into a buffer of the size that NVRTC says it has.
        unsafe {
            if let Err(error) = result::compile_program(self.handle, options) {
                let log = self.log();
                return Err(if log.is_empty() { format!("{error:?}") } else { log });
            }
            let mut size = 0;
            sys::nvrtcGetCUBINSize(self.handle, &raw mut size).result().map_err(|error| format!("{error:?}"))?;
            let mut code = vec![0u8; size];
            sys::nvrtcGetCUBIN(self.handle, code.as_mut_ptr().cast()).result().map_err(|error| format!("{error:?}"))?;
            Ok(code)
        }
    }
}

impl Program<'_> {
    /// What the compiler said.
    fn log(&self) -> String {
        // SAFETY: the program was created by `new` and is destroyed by `drop`, not before.
        let log = unsafe { result::get_program_log(self.handle) }.unwrap_or_default();
        let log: Vec<u8> = log.iter().map(|c| *c as u8).collect();
        String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned()
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed only here.
        let _ = unsafe { result::destroy_program(self.handle) };
    }
}

fn cache_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("CALIPER_CUDA_CACHE") {
        return (!folder.is_empty()).then(|| folder.into());
    }
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    Some(folder.or_else(home)?.join("caliper").join("cuda"))
}

/// The code of an entry, if it is there and whole.
fn read_entry(place: &Path) -> Option<Vec<u8>> {
    let mut content = std::fs::read(place).ok()?;
    let sum = content.get(..SUM)?;
    if Sha256::digest(&content[SUM..])[..] != *sum {
        return None;
    }
    content.drain(..SUM);
    Some(content)
}

fn write_entry(place: &Path, code: &[u8]) -> std::io::Result<()> {
    let Some(folder) = place.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&Sha256::digest(code))?;
    file.write_all(code)?;
    file.persist(place)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_is_damaged_is_not_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("deep").join("entry");
        assert_eq!(read_entry(&place), None);
        write_entry(&place, b"machine code").expect("written");
        assert_eq!(read_entry(&place).as_deref(), Some(&b"machine code"[..]));
        let whole = std::fs::read(&place).expect("read");
        let mut turned = whole.clone();
        *turned.last_mut().expect("not empty") ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..5], &turned, &[]] {
            std::fs::write(&place, damaged).expect("written");
            assert_eq!(read_entry(&place), None);
        }
    }

    #[test]
    fn a_key_tells_everything_that_matters_apart() {
        let key = |architecture, version, text| Compiler { architecture, version, cache: None }.key(text);
        let keys = [key(80, (12, 9), "a"), key(90, (12, 9), "a"), key(80, (12, 8), "a"), key(80, (12, 9), "b")];
        for (at, one) in keys.iter().enumerate() {
            assert_eq!(one.len(), 64);
            assert!(keys[..at].iter().all(|other| other != one));
        }
    }
}
