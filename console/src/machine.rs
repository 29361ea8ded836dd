//! What this process uses and what the machine has left. Figures are `None` where the system doesn't tell.

use std::{fs, path::Path};

/// The most memory this process has held, in bytes.
pub fn peak_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory that can be taken without swapping, in bytes.
pub fn available_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Bytes free for this user on the disk that holds `path` or its nearest existing parent.
pub fn free_disk(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|folder| folder.exists())?;
    let status = rustix::fs::statvfs(existing).ok()?;
    Some(status.f_bavail * status.f_frsize)
}

/// `1.5 GiB`, `12.0 MiB`.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line[key.len()..].split_whitespace().next()?.parse::<u64>().ok().map(|k| k * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kibibytes_are_found_by_their_key() {
        assert_eq!(kibibytes("VmPeak:\t  9 kB\nVmHWM:\t  7 kB\n", "VmHWM:"), Some(7 * 1024));
        assert_eq!(kibibytes("nothing", "VmHWM:"), None);
    }

    #[test]
    fn free_disk_of_a_path_to_come_is_that_of_its_parent() {
        assert!(free_disk(&std::env::temp_dir().join("not/there/yet")).is_some_and(|bytes| bytes > 0));
    }
}
