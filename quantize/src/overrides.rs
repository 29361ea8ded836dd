//! Settings of single modules, chosen by glob: `GLOB:bits=8,group-size=64`.

use crate::QuantizeError;
use glob::Pattern;
use kernels::QuantSpec;
use std::str::FromStr;

/// Columns per group; `None` is one group for the whole row.
type GroupSize = Option<usize>;

/// Settings for the modules whose name matches; what is `None` stays as it is for all.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// As the user gave it.
    pub text: String,
    pattern: Pattern,
    bits: Option<u32>,
    group_size: Option<GroupSize>,
}

impl FromStr for Override {
    type Err = QuantizeError;

    fn from_str(text: &str) -> Result<Self, QuantizeError> {
        let refuse =
            |why: &str| QuantizeError::Option(format!("--override {text}: {why}; write GLOB:bits=8,group-size=64"));
        let (glob, settings) = text.rsplit_once(':').ok_or_else(|| refuse("there is no colon after the glob"))?;
        let mut parsed = Self { text: text.to_owned(), pattern: pattern(glob)?, bits: None, group_size: None };
        for setting in settings.split(',') {
            let (name, value) = setting.split_once('=').ok_or_else(|| refuse("a setting has no `=`"))?;
            match name.trim() {
                "bits" => parsed.bits = Some(value.trim().parse().map_err(|_| refuse("bits is no number"))?),
                "group-size" => parsed.group_size = Some(group_size(value)?),
                other => return Err(refuse(&format!("`{other}` can't be overridden, only bits and group-size"))),
            }
        }
        Ok(parsed)
    }
}

impl Override {
    /// Whether it speaks of `module`.
    pub fn matches(&self, module: &str) -> bool {
        self.pattern.matches(module)
    }

    /// Its settings laid over `spec`.
    pub fn apply(&self, spec: &mut QuantSpec) {
        spec.bits = self.bits.unwrap_or(spec.bits);
        spec.group_size = self.group_size.unwrap_or(spec.group_size);
    }
}

/// A glob over module names; `*` also matches dots.
pub fn pattern(glob: &str) -> Result<Pattern, QuantizeError> {
    Pattern::new(glob).map_err(|error| QuantizeError::Option(format!("`{glob}` is no glob: {}", error.msg)))
}

/// A group size as people write it: −1 is one group for the whole row.
pub fn group_size(text: &str) -> Result<Option<usize>, QuantizeError> {
    match text.trim().parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(size) if size > 0 => Ok(Some(size as usize)),
        _ => Err(QuantizeError::Option(format!(
            "a group size of {text} is none: give at least 8, or -1 for one group per row"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{ActOrder, ScaleSearch};

    #[test]
    fn an_override_changes_what_it_names_and_nothing_else() {
        let over: Override = "*.down_proj:bits=8,group-size=-1".parse().unwrap();
        assert!(over.matches("model.layers.3.mlp.down_proj") && !over.matches("model.layers.3.mlp.up_proj"));
        let mut spec = QuantSpec {
            bits: 4,
            group_size: Some(64),
            symmetric: true,
            act_order: ActOrder::Static,
            scale_search: ScaleSearch::Mse,
            smallest_zero: 1,
        };
        let wanted = QuantSpec { bits: 8, group_size: None, ..spec };
        over.apply(&mut spec);
        assert_eq!(spec, wanted);
    }

    #[test]
    fn what_is_no_override_is_refused_with_the_form_to_write() {
        for (text, why) in [
            ("*.down_proj", "no colon"),
            ("*:bits", "no `=`"),
            ("*:bits=four", "no number"),
            ("*:symmetric=true", "`symmetric` can't be overridden"),
            ("*:group-size=0", "group size of 0"),
            ("[:bits=4", "no glob"),
        ] {
            let error = text.parse::<Override>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
