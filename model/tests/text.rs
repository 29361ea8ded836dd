//! Text files of every kind, whole and broken, through `model::text::read`.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

use flate2::{Compression, write::GzEncoder};
use model::text::{Document, TextFile, read, sha256_of_file};
use parquet::{
    basic::Compression as PageCompression,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::prelude::*;
use std::{fs, fs::File, io::Write, path::Path, sync::Arc};

/// Writes `bytes` as `name` into a new folder and reads it back.
fn read_as(name: &str, bytes: &[u8], field: Option<&str>) -> Result<Vec<Document>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let files = read(path.to_str().unwrap(), field).map_err(|error| error.to_string())?;
    assert_eq!(files.len(), 1);
    Ok(files.into_iter().next().unwrap().documents)
}

fn texts(texts: &[&str]) -> Vec<Document> {
    texts.iter().map(|text| Document::Text((*text).to_owned())).collect()
}

fn chat(messages: &[(&str, &str)]) -> Document {
    Document::Chat(messages.iter().map(|(role, content)| ((*role).to_owned(), (*content).to_owned())).collect())
}

fn refuses(name: &str, bytes: &[u8], field: Option<&str>, says: &[&str]) {
    let error = read_as(name, bytes, field).unwrap_err();
    for part in says.iter().chain(&[name]) {
        assert!(error.contains(part), "`{error}` should say `{part}`");
    }
}

#[test]
fn plain_text_is_one_document() {
    assert_eq!(
        read_as("a.txt", "Grüße\n\nzweiter Absatz".as_bytes(), None).unwrap(),
        texts(&["Grüße\n\nzweiter Absatz"])
    );
    assert_eq!(read_as("a.md", b"\xef\xbb\xbfmark", None).unwrap(), texts(&["mark"]));
    assert_eq!(read_as("no-ending", b"x", Some("ignored")).unwrap(), texts(&["x"]));
    let line = "long ".repeat(1 << 20);
    assert_eq!(read_as("long.raw", line.as_bytes(), None).unwrap(), texts(&[&line]));
}

#[test]
fn broken_plain_text_is_refused() {
    refuses("a.txt", b"", None, &["no text"]);
    refuses("a.txt", b"abc\xff\xfe", None, &["not UTF-8", "byte 3"]);
    refuses("a.txt.gz", b"not gzip at all", None, &[]);
}

#[test]
fn json_lines_read_the_usual_field_or_the_named_one() {
    let lines = b"{\"id\": 1, \"text\": \"one\"}\r\n\n{\"text\": null}\n{\"text\": \"two\", \"content\": \"other\"}";
    assert_eq!(read_as("a.jsonl", lines, None).unwrap(), texts(&["one", "two"]));
    let lines = b"{\"prompt\": \"p\", \"content\": \"c\"}\n";
    assert_eq!(read_as("a.ndjson", lines, None).unwrap(), texts(&["c"]));
    assert_eq!(read_as("a.ndjson", lines, Some("prompt")).unwrap(), texts(&["p"]));
}

#[test]
fn compressed_json_lines_are_read() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(b"{\"text\": \"packed\"}").unwrap();
    assert_eq!(read_as("a.jsonl.gz", &encoder.finish().unwrap(), None).unwrap(), texts(&["packed"]));
}

#[test]
fn broken_json_lines_name_line_and_fields() {
    refuses("a.jsonl", b"{\"text\": \"x\"}\n\n{\"text\"", None, &["line 3", "not JSON"]);
    refuses("a.jsonl", b"{\"title\": \"x\", \"body\": 1}", None, &["line 1", "`text`", "`title`, `body`"]);
    refuses("a.jsonl", b"{\"text\": \"x\"}\n{\"title\": \"x\"}", None, &["line 2", "`text`", "`title`"]);
    refuses("a.jsonl", b"{\"text\": 7}", None, &["line 1", "`text`", "a number"]);
    refuses("a.jsonl", b"[1, 2]", None, &["line 1", "a list"]);
    refuses("a.jsonl", b"{\"turns\": [\"a\", \"b\"]}", Some("turns"), &["line 1", "`turns`", "role"]);
    refuses("a.jsonl", b"{}", Some("text"), &["nothing"]);
    let deep = "[".repeat(100_000);
    refuses("a.jsonl", deep.as_bytes(), None, &["line 1", "not JSON"]);
}

#[test]
fn message_lists_come_in_both_conventions() {
    let lines = br#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}]}"#;
    assert_eq!(read_as("a.jsonl", lines, None).unwrap(), [chat(&[("system", "s"), ("user", "u")])]);
    let list =
        br#"[{"id": "0", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]}]"#;
    assert_eq!(read_as("a.json", list, None).unwrap(), [chat(&[("user", "Who?"), ("assistant", "I.")])]);
    let call = br#"{"messages": [{"role": "assistant", "content": null}]}"#;
    assert_eq!(read_as("a.jsonl", call, None).unwrap(), [chat(&[("assistant", "")])]);
}

#[test]
fn json_must_be_a_list() {
    refuses("a.json", b"{\"text\": \"x\"}", None, &["not a list"]);
    refuses("a.json", b"[", None, &["not JSON"]);
    refuses("a.json", b"[{\"text\": \"x\"}, \"y\"]", None, &["element 2", "text"]);
}

#[test]
fn csv_reads_a_column_by_its_header() {
    let table = b"id,text\n1,\"two\nlines, \"\"quoted\"\"\"\n2,plain\n";
    assert_eq!(read_as("a.csv", table, None).unwrap(), texts(&["two\nlines, \"quoted\"", "plain"]));
    assert_eq!(read_as("a.csv", table, Some("id")).unwrap(), texts(&["1", "2"]));
    refuses("a.csv", b"id,body\n1,x\n", None, &["first row", "`id`, `body`"]);
    refuses("a.csv", b"id,text\n1\n", None, &["not CSV", "line: 2"]);
}

/// A Parquet file with an `id` beside `column`, whose type and values are given.
fn parquet_file(path: &Path, column: &str, values: &[(&str, i16, i16)]) {
    let schema = format!("message rows {{ optional binary id (UTF8); {column} }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = WriterProperties::builder().set_compression(PageCompression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let rows = values.iter().filter(|(_, _, repetition)| *repetition == 0).count();
    let mut ids = group.next_column().unwrap().unwrap();
    ids.typed::<ByteArrayType>().write_batch(&[], Some(&vec![0; rows]), None).unwrap();
    ids.close().unwrap();
    let definitions: Vec<i16> = values.iter().map(|(_, definition, _)| *definition).collect();
    let repetitions: Vec<i16> = values.iter().map(|(_, _, repetition)| *repetition).collect();
    let mut number = 0;
    while let Some(mut leaf) = group.next_column().unwrap() {
        // A value such as "user|hello" fills the first leaf with "user" and the second with "hello".
        let part = |text: &str| text.split('|').nth(number).unwrap().to_owned();
        let present = values.iter().filter(|(text, _, _)| !text.is_empty());
        let texts: Vec<ByteArray> = present.map(|(text, _, _)| ByteArray::from(part(text).as_str())).collect();
        leaf.typed::<ByteArrayType>().write_batch(&texts, Some(&definitions), Some(&repetitions)).unwrap();
        leaf.close().unwrap();
        number += 1;
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_reads_text_and_message_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    parquet_file(&path, "optional binary text (UTF8);", &[("one", 1, 0), ("", 0, 0), ("zwölf", 1, 0)]);
    let name = path.to_str().unwrap();
    assert_eq!(read(name, None).unwrap()[0].documents, texts(&["one", "zwölf"]));
    let error = read(name, Some("body")).unwrap_err().to_string();
    assert!(error.contains("`body`") && error.contains("`id`, `text`"), "{error}");

    let messages = "optional group messages (LIST) { repeated group list { optional group element {
        required binary role (UTF8); required binary content (UTF8); } } }";
    parquet_file(&path, messages, &[("user|hello", 3, 0), ("assistant|hi", 3, 1), ("user|bye", 3, 0)]);
    let expected = [chat(&[("user", "hello"), ("assistant", "hi")]), chat(&[("user", "bye")])];
    assert_eq!(read(name, None).unwrap()[0].documents, expected);
}

#[test]
fn damaged_parquet_is_refused() {
    refuses("a.parquet", b"", None, &["Parquet"]);
    refuses("a.parquet", b"PAR1 nothing of the kind PAR1", None, &["Parquet"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    parquet_file(&path, "optional binary text (UTF8);", &[("one", 1, 0), ("two", 1, 0)]);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        let _ = read_as("damaged.parquet", &damaged, None);
    }
}

fn names(files: &[TextFile]) -> Vec<String> {
    files.iter().map(|file| file.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn folders_and_globs_are_read_in_sorted_order() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.txt", "a.txt", "c.md", ".hidden", "empty.txt"] {
        fs::write(folder.path().join(name), if name.starts_with("empty") { "" } else { name }).unwrap();
    }
    fs::create_dir(folder.path().join("inner")).unwrap();
    fs::write(folder.path().join("inner/d.txt"), "d").unwrap();
    let root = folder.path().to_str().unwrap();
    let files = read(root, None).unwrap();
    assert_eq!(names(&files), ["a.txt", "b.txt", "c.md", "empty.txt"]);
    assert_eq!(files[0].documents, texts(&["a.txt"]));
    assert!(files[3].documents.is_empty());
    assert_eq!(names(&read(&format!("{root}/*.txt"), None).unwrap()), ["a.txt", "b.txt", "empty.txt"]);
    assert_eq!(names(&read(&format!("{root}/**/*.txt"), None).unwrap()).len(), 4);
    for missing in ["nothing.txt", "*.jsonl", "[", "***"] {
        assert!(read(&format!("{root}/{missing}"), None).unwrap_err().to_string().contains(missing));
    }
}

#[test]
fn hashes_are_those_of_sha_256() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("abc");
    fs::write(&path, "abc").unwrap();
    // The first example of FIPS 180-2.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256_of_file(&path).unwrap(), expected);
    assert_eq!(read(path.to_str().unwrap(), None).unwrap()[0].sha256, expected);
    assert!(sha256_of_file(&folder.path().join("missing")).unwrap_err().to_string().contains("missing"));
}

proptest! {
    #[test]
    fn json_lines_give_back_any_text(strings in prop::collection::vec(".*", 1..8)) {
        let lines: Vec<String> = strings.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        let expected: Vec<Document> = strings.into_iter().map(Document::Text).collect();
        prop_assert_eq!(read_as("a.jsonl", lines.join("\n").as_bytes(), None).unwrap(), expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), ending in 0usize..6) {
        let name = ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.csv.gz"][ending];
        let _ = read_as(name, &bytes, None);
    }
}
