//! Chat templates: message lists to the text a chat model was trained on (Jinja, as in `tokenizer_config.json`).
//!
//! Templates are written for Python's Jinja with blocks trimmed; what they use of Python beyond Jinja is here: methods
//! of strings and dictionaries, `raise_exception`, `strftime_now`, `tojson` in Python's spelling. They come with a
//! checkpoint and are not trusted: a template has so much fuel and no more.

use crate::ModelError;
use minijinja::{
    Environment, Error, ErrorKind, State, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind, from_args},
};
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io;

/// Steps a template may take whatever the messages are; a long one needs a few hundred for each message.
const BASE_FUEL: u64 = 1_000_000;
/// Steps for each byte of the messages.
const FUEL_PER_BYTE: u64 = 8;

/// Renders `messages` (role, content) through `template`, without a generation prompt.
pub fn render(template: &str, messages: &[(String, String)], bos: &str, eos: &str) -> Result<String, ModelError> {
    rendered(template, messages, bos, eos, false)
}

/// Renders `messages` up to where the model's answer begins.
pub fn prompt(template: &str, messages: &[(String, String)], bos: &str, eos: &str) -> Result<String, ModelError> {
    rendered(template, messages, bos, eos, true)
}

fn rendered(
    template: &str,
    messages: &[(String, String)],
    bos: &str,
    eos: &str,
    answer: bool,
) -> Result<String, ModelError> {
    let bytes: usize = messages.iter().map(|(role, content)| role.len() + content.len()).sum();
    let mut environment = environment().map_err(|error| sentence(&error))?;
    environment.set_fuel(Some(BASE_FUEL + FUEL_PER_BYTE * bytes as u64));
    let source = without_generation_marks(template);
    environment.add_template("template", &source).map_err(|error| sentence(&error))?;
    let messages: Vec<Value> =
        messages.iter().map(|(role, content)| context! { role => role, content => content }).collect();
    let values = context! {
        messages => messages, bos_token => bos, eos_token => eos, add_generation_prompt => answer,
        tools => Value::from(()), documents => Value::from(()),
    };
    environment.get_template("template").and_then(|template| template.render(values)).map_err(|error| sentence(&error))
}

/// One sentence: what went wrong and in which line.
fn sentence(error: &Error) -> ModelError {
    let line = error.line().map_or(String::new(), |line| format!(", in line {line}"));
    ModelError::Template(match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => format!("{detail}{line}"),
        Some(detail) => format!("{}: {detail}{line}", error.kind()),
        None => format!("{}{line}", error.kind()),
    })
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(refusal(message)) });
    environment.add_function("strftime_now", strftime);
    environment.add_filter("tojson", to_json);
    Ok(environment)
}

fn refusal(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `{% generation %}` marks an answer for training and changes no text; it becomes a block that always holds.
fn without_generation_marks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inside, after)) = tag.split_once("%}") else { break };
        let bare = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replaced = match bare {
            "generation" => inside.replacen(bare, "if true", 1),
            "endgeneration" => inside.replacen(bare, "endif", 1),
            _ => inside.to_owned(),
        };
        out.extend([before, "{%", &replaced, "%}"]);
        rest = after;
    }
    out + rest
}

/// The time that templates see. A fixed one, the date that templates fall back on themselves: the same messages must
/// give the same text on every day.
fn strftime(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        out.push_str(match characters.next() {
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('b') => "Jul",
            Some('B') => "July",
            Some('d') => "26",
            Some('H' | 'M' | 'S') => "00",
            Some('m') => "07",
            Some('y') => "24",
            Some('Y') => "2024",
            Some('%') => "%",
            other => return Err(refusal(format!("strftime_now doesn't know `%{}`", other.unwrap_or(' ')))),
        });
    }
    Ok(out)
}

/// A value as JSON.
fn json(value: &Value) -> Result<serde_json::Value, Error> {
    Ok(match value.kind() {
        ValueKind::Undefined | ValueKind::None => serde_json::Value::Null,
        ValueKind::Bool => value.is_true().into(),
        ValueKind::String => value.as_str().unwrap_or_default().into(),
        ValueKind::Number => serde_json::from_str(&value.to_string()).map_err(|error| refusal(error.to_string()))?,
        ValueKind::Map => {
            let mut map = serde_json::Map::new();
            for key in value.try_iter()? {
                map.insert(key.to_string(), json(&value.get_item(&key)?)?);
            }
            map.into()
        }
        _ => value.try_iter()?.map(|item| json(&item)).collect::<Result<Vec<_>, _>>()?.into(),
    })
}

/// Python's `json.dumps`: a space after commas and colons unless indented, nothing escaped that needn't be.
#[expect(clippy::needless_pass_by_value, reason = "the form of a filter's arguments")]
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let value = json(value)?;
    let written = match indent {
        None => serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    };
    written.map_err(|error| refusal(error.to_string()))?;
    String::from_utf8(out).map_err(|error| refusal(error.to_string()))
}

/// Separators as Python writes them.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Methods that Python's strings and dictionaries have and Jinja's filters haven't: minijinja's callback for unknown ones,
/// for other templates that were written for Python as well.
pub fn method(_: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), name, arguments),
        ValueKind::Map => map_method(value, name, arguments),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn string_method(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match name {
        "strip" | "lstrip" | "rstrip" => strip(text, name, arguments),
        "startswith" => any_affix(arguments, |affix| text.starts_with(affix)),
        "endswith" => any_affix(arguments, |affix| text.ends_with(affix)),
        "upper" => no_arguments(arguments, text.to_uppercase()),
        "lower" => no_arguments(arguments, text.to_lowercase()),
        "capitalize" => no_arguments(arguments, capitalized(text)),
        "title" => {
            let words = text.split_inclusive(|character: char| !character.is_alphabetic());
            no_arguments(arguments, words.map(capitalized).collect())
        }
        "replace" => {
            let (from, to, count): (&str, &str, Option<usize>) = from_args(arguments)?;
            Ok(text.replacen(from, to, count.unwrap_or(usize::MAX)).into())
        }
        "split" => {
            let (separator, most): (Option<&str>, Option<usize>) = from_args(arguments)?;
            Ok(split(text, separator, most))
        }
        "splitlines" => Ok(text.lines().map(Value::from).collect()),
        "join" => {
            let (parts,): (Vec<String>,) = from_args(arguments)?;
            Ok(parts.join(text).into())
        }
        "find" => {
            let (part,): (&str,) = from_args(arguments)?;
            Ok(text.find(part).map_or(-1, |at| text[..at].chars().count() as i64).into())
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn no_arguments(arguments: &[Value], result: String) -> Result<Value, Error> {
    let () = from_args(arguments)?;
    Ok(result.into())
}

fn strip(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (set,): (Option<&str>,) = from_args(arguments)?;
    let stripped = |character: char| set.map_or(character.is_whitespace(), |set| set.contains(character));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(stripped) };
    let text = if name == "lstrip" { text } else { text.trim_end_matches(stripped) };
    Ok(text.into())
}

/// Whether the one argument, or one of the list, is an affix.
fn any_affix(arguments: &[Value], holds: impl Fn(&str) -> bool) -> Result<Value, Error> {
    let (affix,): (Value,) = from_args(arguments)?;
    let wrong = || refusal("startswith and endswith take a string or several");
    if let Some(affix) = affix.as_str() {
        return Ok(holds(affix).into());
    }
    for affix in affix.try_iter()? {
        if holds(affix.as_str().ok_or_else(wrong)?) {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(characters.flat_map(char::to_lowercase)).collect())
}

/// At most `most` cuts; without a separator at runs of white space.
fn split(text: &str, separator: Option<&str>, most: Option<usize>) -> Value {
    let pieces = most.map_or(usize::MAX, |most| most.saturating_add(1));
    match separator {
        Some(separator) if !separator.is_empty() => text.splitn(pieces, separator).map(Value::from).collect(),
        _ => {
            let mut rest = text.trim_start();
            let mut words = Vec::new();
            while !rest.is_empty() && words.len() + 1 < pieces {
                let (word, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
                words.push(Value::from(word));
                rest = after.trim_start();
            }
            words.extend((!rest.is_empty()).then(|| Value::from(rest)));
            words.into_iter().collect()
        }
    }
}

fn map_method(map: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match name {
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(arguments)?;
            let found = map.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        "keys" => {
            let () = from_args(arguments)?;
            Ok(map.try_iter()?.collect())
        }
        "values" | "items" => {
            let () = from_args(arguments)?;
            let pair = |key: Value| -> Result<Value, Error> {
                let value = map.get_item(&key)?;
                Ok(if name == "values" { value } else { Value::from(vec![key, value]) })
            };
            map.try_iter()?.map(pair).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> Vec<(String, String)> {
        [("system", " Be brief. "), ("user", "Hi <there> & \"you\""), ("assistant", "Hello")]
            .map(|(role, content)| (role.to_owned(), content.to_owned()))
            .to_vec()
    }

    fn rendered(template: &str) -> String {
        render(template, &messages(), "<s>", "</s>").unwrap()
    }

    fn refused(template: &str) -> String {
        render(template, &messages(), "<s>", "</s>").unwrap_err().to_string()
    }

    #[test]
    fn blocks_are_trimmed_as_in_python() {
        let template = "{{ bos_token }}\n{% for message in messages %}\n    {% if message['role'] == 'system' %}\n\
            [{{ message.content.strip() }}]\n    {%- else %}\n{{ message['role'] }}: {{ message.content + eos_token }}\n\
            {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}answer{% endif %}\n";
        assert_eq!(rendered(template), "<s>\n[Be brief.]user: Hi <there> & \"you\"</s>\nassistant: Hello</s>\n");
    }

    #[test]
    fn a_prompt_ends_where_the_answer_begins() {
        let template =
            "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}A:{% endif %}";
        let messages = [("user".to_owned(), "Q".to_owned())];
        assert_eq!(prompt(template, &messages, "", "").unwrap(), "[Q]A:");
        assert_eq!(render(template, &messages, "", "").unwrap(), "[Q]");
    }

    #[test]
    fn python_methods() {
        for (expression, expected) in [
            ("' ab '.lstrip()", "ab "),
            ("'xxabx'.strip('x')", "ab"),
            ("'abc'.startswith(('x', 'ab'))", "True"),
            ("'abc'.endswith('b')", "False"),
            ("'a</t>b'.split('</t>')[-1]", "b"),
            ("' a  b c '.split(None, 1)|join('|')", "a|b c "),
            ("'a,b,c'.split(',', 1)|join('|')", "a|b,c"),
            ("'hELLO wORLD'.title()", "Hello World"),
            ("'hELLO wORLD'.capitalize()", "Hello world"),
            ("'aXbX'.replace('X', '-', 1)", "a-bX"),
            ("'äöx'.find('x')", "2"),
            ("', '.join(['a', 'b'])", "a, b"),
            ("{'a': 1}.get('b', 'none')", "none"),
            ("{'b': 1, 'a': 2}.items()|map('join', '=')|join(' ')", "b=1 a=2"),
            ("{'b': 1, 'a': 2}.keys()|join", "ba"),
            ("messages[1:]|length", "2"),
            ("strftime_now('%d %b %Y')", "26 Jul 2024"),
            ("messages[1]|tojson", r#"{"role": "user", "content": "Hi <there> & \"you\""}"#),
            ("{'a': [1, 2.5, true, none]}|tojson", r#"{"a": [1, 2.5, true, null]}"#),
            ("{'a': 1}|tojson(indent=2)", "{\n  \"a\": 1\n}"),
            ("tools is none and documents is none", "True"),
        ] {
            assert_eq!(rendered(&format!("{{{{ {expression} }}}}")), expected, "{expression}");
        }
    }

    #[test]
    fn statements_that_templates_use() {
        let template = "{% set seen = namespace(n=0) %}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}\
            {% set seen.n = seen.n + 1 %}{%- generation -%} {{ m.content }} {%- endgeneration %}{% break %}{% endfor %}\
            {{ seen.n }}{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[2].role) }}";
        assert_eq!(rendered(template), "Hi <there> & \"you\"1<assistant>");
    }

    #[test]
    fn errors_are_sentences() {
        let message = refused("{{ raise_exception('Roles must alternate') }}");
        assert_eq!(message, "chat template: Roles must alternate, in line 1");
        assert!(refused("\n{% for x in %}").starts_with("chat template: syntax error"));
        assert!(refused("{{ messages[0].nothing.more }}").contains("undefined"));
        assert!(refused("{{ 'a'.translate() }}").contains("method"));
        assert!(refused("{{ strftime_now('%Q') }}").contains("%Q"));
        for hungry in [
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        ] {
            assert!(refused(hungry).starts_with("chat template: "), "{hungry}");
        }
    }
}
