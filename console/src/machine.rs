//! What this process uses and what the machine has left. Figures are `None` where the system doesn't tell.

use std::{fs, path::Path};

/// The most memory this process has held, in bytes.
pub fn peak_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory of the machine, in bytes.
pub fn total_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Memory that can be taken without swapping, in bytes.
pub fn available_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Bytes free for this user on the disk that holds `path` or its nearest existing parent.
pub fn free_disk(path: &Path) -> Option<u64> {
    // Joined with `.`, since an empty path, the folder of `study.toml`, is refused.
    let absolute = std::path::absolute(path.join(".")).ok()?;
    let existing = absolute.ancestors().find(|folder| folder.exists())?;
    let status = rustix::fs::statvfs(existing).ok()?;
    Some(status.f_bavail * status.f_frsize)
}

/// `1.5 GiB`, `12.0 MiB`.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Reads `1073741824`, `512MiB`, `1.5 GiB`: bytes, with `K`, `M`, `G` or `T` (with or without `iB` or `B`) in powers of
/// 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let power = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(format!("`{unit}` is no unit of memory; write for example 512MiB or 2GiB")),
    };
    let number: f64 =
        number.parse().map_err(|_| "an amount of memory is a number such as 512MiB or 2GiB".to_owned())?;
    Ok((number * 1024_f64.powi(power)) as u64)
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
    fn amounts_of_memory_are_read_with_and_without_a_unit() {
        for (text, expected) in [("7", 7), ("2k", 2048), ("1.5 GiB", 3 << 29), ("512MB", 512 << 20), ("1TiB", 1 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(expected), "{text}");
        }
        assert!(parse_bytes("2 bananas").is_err() && parse_bytes("GiB").is_err() && parse_bytes("-1").is_err());
    }

    #[test]
    fn free_disk_of_a_path_to_come_is_that_of_its_parent() {
        assert!(free_disk(&std::env::temp_dir().join("not/there/yet")).is_some_and(|bytes| bytes > 0));
        assert!(free_disk(Path::new("")).is_some_and(|bytes| bytes > 0));
    }
}
