//! One column of a Parquet file, or all, row by row.

use super::{
    Document,
    field::{Records, choose},
    records::Record,
};
use crate::ModelError;
use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
    schema::types::Type,
};
use serde_json::Value;
use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

/// The documents of column `field`.
pub(super) fn documents(path: &Path, field: Option<&str>) -> Result<Vec<Document>, ModelError> {
    let file = File::open(path).map_err(ModelError::io(path))?;
    // The reader checks less than it reads: on a damaged file it may panic where it should return an error.
    let read = catch_unwind(AssertUnwindSafe(|| rows(path, file, field)));
    read.unwrap_or_else(|_| Err(ModelError::malformed(path, "damaged Parquet file: its reader gave up")))
}

/// Every row with all its columns.
pub(super) fn records(path: &Path) -> Result<Vec<Record>, ModelError> {
    let file = File::open(path).map_err(ModelError::io(path))?;
    let read = catch_unwind(AssertUnwindSafe(|| all_rows(path, file)));
    read.unwrap_or_else(|_| Err(ModelError::malformed(path, "damaged Parquet file: its reader gave up")))
}

fn all_rows(path: &Path, file: File) -> Result<Vec<Record>, ModelError> {
    let malformed = |error: ParquetError| ModelError::malformed(path, format!("not a readable Parquet file: {error}"));
    let reader = SerializedFileReader::new(file).map_err(malformed)?;
    let rows = reader.get_row_iter(None).map_err(malformed)?;
    rows.map(|row| {
        let row = row.map_err(malformed)?;
        Ok(row.get_column_iter().map(|(name, value)| (name.clone(), json(value))).collect())
    })
    .collect()
}

fn rows(path: &Path, file: File, field: Option<&str>) -> Result<Vec<Document>, ModelError> {
    let malformed = |error: ParquetError| ModelError::malformed(path, format!("not a readable Parquet file: {error}"));
    let reader = SerializedFileReader::new(file).map_err(malformed)?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema();
    let columns = schema.get_fields();
    let field = choose(path, "the table", columns.iter().map(|column| column.name()), field)?;
    let column = columns.iter().filter(|column| column.name() == field).take(1).map(Arc::clone).collect();
    let projection = Type::group_type_builder(schema.name()).with_fields(column).build().map_err(malformed)?;
    let mut records = Records::new(path, None);
    for (number, row) in reader.get_row_iter(Some(projection)).map_err(malformed)?.enumerate() {
        let row = row.map_err(malformed)?;
        let value = row.get_column_iter().next().map_or(Value::Null, |(_, value)| json(value));
        records.value(&format!("row {}", number + 1), &field, value)?;
    }
    Ok(records.documents)
}

/// The value as JSON. Of dates, maps and decimals only their kind is wanted, for the error that they lead to.
fn json(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Bool(false), |text| Value::String(text.to_owned())),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        Field::Group(row) => row.get_column_iter().map(|(name, value)| (name.clone(), json(value))).collect(),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        _ => Value::from(0),
    }
}
