//! HTML pages as a browser shows them.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use assert_cmd::Command;
use serde_json::{Value, json};
use std::{fs, time::Duration};

const BROWSERS: &[&str] = &["chromium", "chromium-browser", "google-chrome", "chrome"];

/// The browser to look with: `CALIPER_BROWSER`, else one of the usual names.
fn browser() -> Option<String> {
    let given = std::env::var("CALIPER_BROWSER").ok().into_iter();
    given.chain(BROWSERS.iter().map(|name| (*name).to_owned())).find(|name| {
        std::process::Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    })
}

/// What the script `look.js` finds on the page `html`.
fn look(browser: &str, html: &str, dark: bool) -> Value {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("page.html"), html).unwrap();
    let script = include_str!("look.js");
    let frame =
        format!("<!DOCTYPE html><meta charset=\"utf-8\"><title>look</title><body><script>{script}</script></body>");
    fs::write(folder.path().join("look.html"), frame).unwrap();
    let run = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=20000", "--window-size=1200,900"])
        .args(dark.then_some("--force-dark-mode"))
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", folder.path().join("look.html").display()))
        .timeout(Duration::from_mins(3))
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let said: Vec<&str> = log.lines().filter(|line| line.contains(":CONSOLE:")).collect();
    assert!(said.is_empty(), "{said:?}");
    let start = dom.find("id=\"result\">").unwrap_or_else(|| panic!("the script did not end: {log}"));
    let result = dom[start + 12..].split("</pre>").next().unwrap();
    let result = result.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&result).unwrap()
}

/// Looks at a page in light and in dark, narrow and wide: nothing overlaps, no figure is empty, nothing comes from outside, and the
/// console is silent. Returns what was counted on it; nothing, said aloud, where there is no browser.
pub(crate) fn check(html: &str, figures: usize) -> Option<Value> {
    let Some(browser) = browser() else {
        eprintln!("!! SKIPPED: there is no Chromium ({}): no page was looked at", BROWSERS.join(", "));
        return None;
    };
    let [light, dark] = [false, true].map(|dark| look(&browser, html, dark));
    for (found, is_dark) in [(&light, false), (&dark, true)] {
        assert_eq!(found["wrong"], json!([]), "dark: {is_dark}");
        assert_eq!((&found["figures"], &found["dark"]), (&json!(figures), &json!(is_dark)));
        assert!(found["contrast"].as_f64().unwrap() > 7.0, "{found}");
    }
    Some(light)
}
