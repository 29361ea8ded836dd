//! A setting's values: one, which is held fixed in every cell, or a list, which is crossed with the others.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, IntoDeserializer, SeqAccess, Visitor},
};
use std::{borrow::Cow, fmt, marker::PhantomData};

/// `4` or `[4, 3]`; never empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Values<T>(Vec<T>);

impl<T> Values<T> {
    /// One value.
    pub fn one(value: T) -> Self {
        Self(vec![value])
    }

    /// The values, at least one.
    pub fn all(&self) -> &[T] {
        &self.0
    }
}

/// By hand rather than by an untagged enum, whose only error would be that no variant fits.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Values<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMany(PhantomData))
    }
}

struct OneOrMany<T>(PhantomData<T>);

macro_rules! one {
    ($($visit:ident: $type:ty),+) => { $(
        fn $visit<E: Error>(self, value: $type) -> Result<Values<T>, E> {
            T::deserialize(value.into_deserializer()).map(Values::one)
        }
    )+ };
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
    type Value = Values<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value, or a list of values to cross")
    }

    one!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, visit_string: String);

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Values<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element()? {
            values.push(value);
        }
        if values.is_empty() {
            return Err(A::Error::custom("an empty list leaves no cell: give at least one value"));
        }
        Ok(Values(values))
    }
}

impl<T: JsonSchema> JsonSchema for Values<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Values_of_{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        schemars::json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Holder {
        bits: Values<u32>,
    }

    fn bits(text: &str) -> Result<Vec<u32>, String> {
        toml::from_str::<Holder>(text).map(|holder| holder.bits.0).map_err(|error| error.to_string())
    }

    #[test]
    fn one_value_and_a_list_are_both_taken() {
        assert_eq!(bits("bits = 4").unwrap(), [4]);
        assert_eq!(bits("bits = [4, 3]").unwrap(), [4, 3]);
    }

    #[test]
    fn what_is_wrong_with_a_value_is_said() {
        assert!(bits("bits = []").unwrap_err().contains("at least one value"));
        assert!(bits("bits = \"four\"").unwrap_err().contains("expected u32"));
        assert!(bits("bits = [4, -1]").unwrap_err().contains("expected u32"));
        assert!(bits("bits = { four = 4 }").unwrap_err().contains("a list of values to cross"));
    }
}
