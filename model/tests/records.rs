//! Files of records in every shape, whole and damaged.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

use bzip2::{Compression, write::BzEncoder};
use model::text::records::{Layout, Record, records};
use parquet::{
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::writer::SerializedFileWriter,
    schema::parser::parse_message_type,
};
use serde_json::{Value, json};
use std::{fs, fs::File, io::Write, sync::Arc};

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn read(name: &str, content: &[u8], columns: &[&str], lines: &[&str]) -> Result<Vec<Record>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    let (columns, lines) = (strings(columns), strings(lines));
    records(&path, Layout { columns: &columns, lines: &lines }).map_err(|error| error.to_string())
}

fn values(records: Result<Vec<Record>, String>) -> Value {
    records.unwrap().into_iter().map(Value::Object).collect()
}

#[test]
fn json_lines_and_lists_keep_every_field() {
    let expected = json!([{"q": "a", "n": 1, "l": [true, null]}, {"q": "b"}]);
    let lines = "{\"q\": \"a\", \"n\": 1, \"l\": [true, null]}\n\n{\"q\": \"b\"}\n";
    assert_eq!(values(read("a.jsonl", lines.as_bytes(), &[], &[])), expected);
    assert_eq!(values(read("a.json", expected.to_string().as_bytes(), &[], &[])), expected);
    assert!(read("a.jsonl", b"{}\n[1]\n", &[], &[]).unwrap_err().contains("line 2 is not an object"));
    assert!(read("a.jsonl", b"{", &[], &[]).unwrap_err().contains("line 1 is not JSON"));
    assert!(read("a.json", b"{}", &[], &[]).unwrap_err().contains("list"));
}

#[test]
fn csv_has_its_names_in_the_first_row_unless_it_has_none() {
    let expected = json!([{"question": "a, \"b\"", "A": "1"}, {"question": "c\nd", "A": ""}]);
    let rows = "\"a, \"\"b\"\"\",1\n\"c\nd\",\n";
    for (first, columns) in [("question,A\n", &["question", "A"][..]), ("", &["question", "A"]), ("question,A\n", &[])]
    {
        assert_eq!(values(read("a.csv", format!("{first}{rows}").as_bytes(), columns, &[])), expected);
    }
    // Other names than those given are the file's own, as long as the first is there.
    assert_eq!(
        values(read("a.csv", b"Question,x\n1,2\n", &["question", "A"], &[])),
        json!([{"Question": "1", "x": "2"}])
    );
    assert!(read("a.csv", b"a,b\n1\n", &[], &[]).unwrap_err().contains("CSV"));
    assert!(read("a.csv", b"1,2,3\n", &["question", "A"], &[]).unwrap_err().contains("3 columns"));
    assert_eq!(values(read("a.csv", b"", &[], &[])), json!([]));
}

#[test]
fn lines_make_records_compressed_or_not() {
    let text = "a\n0\nb\n1\n";
    let mut encoder = BzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    let compressed = encoder.finish().unwrap();
    let expected = json!([{"q": "a", "label": "0"}, {"q": "b", "label": "1"}]);
    assert_eq!(values(read("a.txt", text.as_bytes(), &[], &["q", "label"])), expected);
    assert_eq!(values(read("a.txt.bz2", &compressed, &[], &["q", "label"])), expected);
    assert!(read("a.txt.bz2", &compressed[..20], &[], &["q", "label"]).is_err());
    let compressed = zstd::encode_all(text.as_bytes(), 1).unwrap();
    assert_eq!(values(read("a.txt.zst", &compressed, &[], &["q", "label"])), expected);
    assert!(read("a.txt.zst", &compressed[..8], &[], &["q", "label"]).is_err());
    assert!(read("a.jsonl.zst", b"not zstd", &[], &[]).is_err());
    assert!(read("a.txt", b"a\nb\nc\n", &[], &["q", "label"]).unwrap_err().contains("3 lines"));
    assert!(read("a.txt", b"a\n", &[], &[]).unwrap_err().contains("`txt`"));
}

#[test]
fn parquet_keeps_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let schema = "message m { required binary q (UTF8); required int64 answer; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts = [ByteArray::from("a"), ByteArray::from("b")];
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[3, -1], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let read = records(&path, Layout::default()).map_err(|error| error.to_string());
    assert_eq!(values(read), json!([{"q": "a", "answer": 3}, {"q": "b", "answer": -1}]));
    assert!(self::read("b.parquet", b"PAR1 nothing PAR1", &[], &[]).unwrap_err().contains("Parquet"));
}
