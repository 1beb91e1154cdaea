//! The schema, held against the reader, and against every configuration in the repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use jsonschema::Validator;
use toml::de::DeTable;

use super::*;
use crate::config::{Config, reader::Reader};

fn parsed() -> Value {
    serde_json::from_str(&schema()).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of configurations in a folder, by name; those of cases are none.
fn files(folder: &str) -> Vec<(String, String)> {
    let files = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|file: &PathBuf| {
        let name = file.to_string_lossy();
        name.ends_with(".toml") && !name.ends_with(".test.toml")
    });
    files.map(|file| (file.display().to_string(), fs::read_to_string(&file).unwrap())).collect()
}

/// Everything that is valid: the shipped file, the ready tables, those of the tests.
fn valid() -> Vec<(String, String)> {
    let folders = ["examples", "tests/situations", "tests/config/valid"];
    let shipped = ("config.toml".to_owned(), SHIPPED.to_owned());
    [shipped].into_iter().chain(folders.into_iter().flat_map(files)).collect()
}

/// TOML as JSON, as an editor sees it.
fn json_of(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => json!(text),
        DeValue::Integer(number) => number.to_string().parse().map(Value::Number).unwrap(),
        DeValue::Float(number) => json!(number.to_string().parse::<f64>().unwrap()),
        DeValue::Boolean(value) => json!(value),
        DeValue::Datetime(time) => json!(time.to_string()),
        DeValue::Array(items) => items.iter().map(|item| json_of(item.get_ref())).collect(),
        DeValue::Table(table) => document(table),
    }
}

fn document(table: &DeTable<'_>) -> Value {
    let members =
        table.iter().map(|(key, value)| (key.get_ref().to_string(), json_of(value.get_ref())));
    Value::Object(members.collect())
}

/// What this schema finds wrong with a file, whatever it is the schema of.
pub(crate) fn schema_errors(schema: &Value, text: &str) -> Vec<String> {
    errors(&jsonschema::validator_for(schema).unwrap(), text)
}

/// What the schema finds wrong with a file.
fn errors(validator: &Validator, text: &str) -> Vec<String> {
    let document = document(DeTable::parse(text).unwrap().get_ref());
    validator
        .iter_errors(&document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// Calls `found` with the path and the schema of every property, through references and alternatives.
fn walk(root: &Value, path: &str, schema: &Value, found: &mut dyn FnMut(&str, &Value)) {
    let schema = resolved(root, schema);
    let below = ["anyOf", "items"].into_iter().filter_map(|word| schema.get(word));
    for schema in below {
        match schema {
            Value::Array(alternatives) => {
                for schema in alternatives {
                    walk(root, path, schema, found);
                }
            }
            one => walk(root, path, one, found),
        }
    }
    for (key, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        found(&path, schema);
        walk(root, &path, schema, found);
    }
}

/// What a reference leads to.
fn resolved<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let reference = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
    reference.map_or(schema, |pointer| root.pointer(pointer).unwrap())
}

/// `{ filter = "name" }` may stand for every jq, under names of the operator's own choice as well.
fn is_reference(path: &str) -> bool {
    path.ends_with(".filter")
}

#[test]
fn it_has_the_keys_that_the_reader_asks_for_and_no_others() {
    let (schema, mut known) = (parsed(), BTreeSet::new());
    walk(&schema, "", &schema, &mut |path, _| {
        known.insert(path.to_owned());
    });
    known.retain(|path| !is_reference(path));
    let mut asked = BTreeSet::new();
    for (_, text) in valid() {
        let env = BTreeMap::new();
        let reader = Reader::new(&text, &env).without_secrets();
        let noted = reader.asked.clone();
        assert!(Config::read(reader).is_ok(), "{text}");
        asked.extend(noted.take());
    }
    asked.retain(|path| !is_reference(path));
    let differ: Vec<_> = known.symmetric_difference(&asked).collect();
    assert!(
        differ.is_empty() && known.len() > 100,
        "only the schema, or only the reader: {differ:?}"
    );
}

#[test]
fn every_key_is_described() {
    let schema = parsed();
    walk(&schema, "", &schema, &mut |path, property| {
        let texts = [property, resolved(&schema, property)].map(|schema| schema.get("description"));
        let is_told = |text: &Value| text.as_str().is_some_and(|text| !text.is_empty());
        let is_described = texts.into_iter().flatten().any(is_told);
        assert!(is_described || is_reference(path), "{path} is not described");
    });
    assert_eq!(schema["properties"]["broker"]["properties"]["keep_alive"]["default"], "30s");
    assert_eq!(schema["properties"]["upstream"]["properties"]["max_in_flight"]["default"], 256);
}

#[test]
fn words_are_those_of_the_reader() {
    let (schema, mut count) = (parsed(), 0);
    walk(&schema, "", &schema, &mut |path, property| {
        let Some(words) = resolved(&schema, property).get("enum").and_then(Value::as_array) else {
            return;
        };
        let (section, key) = path.rsplit_once('.').unwrap();
        let row = "name = \"r\"\non = \"x/{device_id}\"\n";
        let head =
            if section == "route" { format!("[[route]]\n{row}") } else { format!("[{section}]\n") };
        let mistakes =
            Config::parse(&format!("{head}{key} = \"?\"\n"), &BTreeMap::new()).unwrap_err();
        let quoted: Vec<String> = words.iter().map(ToString::to_string).collect();
        let expected = format!("unknown value `?`; write one of {}", quoted.join(", "));
        let text: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(text.iter().any(|text| text.ends_with(&expected)), "{path}: {expected}: {text:#?}");
        count += 1;
    });
    assert!(count > 5, "{count} keys with words");
}

#[test]
fn every_configuration_that_is_valid_is_so_by_the_schema() {
    let validator = jsonschema::validator_for(&parsed()).unwrap();
    let valid = valid();
    assert!(valid.len() > 30, "{}", valid.len());
    for (name, text) in valid {
        assert_eq!(errors(&validator, &text), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn unknown_keys_and_values_of_another_kind_are_found() {
    let validator = jsonschema::validator_for(&parsed()).unwrap();
    let invalid = files("tests/config/invalid");
    let text = |name: &str| {
        let file = invalid.iter().find(|(file, _)| file.ends_with(&format!("/{name}.toml")));
        file.map(|(_, text)| text.as_str()).unwrap()
    };
    // In each of these files, at these places at least.
    for (name, places) in [
        ("unknown_keys", &["ulr", "dead_line", "initail", "colour", "brokr", "rely"][..]),
        (
            "rows",
            &[
                "/call",
                "/retry",
                "/retain",
                "/rate",
                "wenn",
                "lingr",
                "/batch",
                "unknwn",
                "/empty_on",
            ],
        ),
        (
            "values",
            &["/session_expiry", "/max_pending", "/max_packet", "/total", "/format", "/grace"],
        ),
        ("auth_twice", &["/upstream/auth"]),
    ] {
        let errors = errors(&validator, text(name)).join("\n");
        for place in places {
            assert!(errors.contains(place), "{name}: {place} is not in\n{errors}");
        }
    }
}
