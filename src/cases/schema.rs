//! The JSON Schema of files of cases, for editors. Tests hold it against what the reader asks for, and against every file of
//! cases of the repository.

/// The schema, as JSON.
pub(crate) const SCHEMA: &str = include_str!("schema.json");

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use serde_json::Value;

    use super::*;
    use crate::{
        cases::file::{asked, tests::MISTAKEN},
        config::schema_errors,
    };

    fn parsed() -> Value {
        serde_json::from_str(SCHEMA).unwrap()
    }

    /// Every file of cases: name and text.
    fn files() -> Vec<(PathBuf, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = [root.to_owned(), root.join("examples")].into_iter();
        let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap());
        let files = files.map(|entry| entry.unwrap().path());
        let files = files.filter(|file| file.to_string_lossy().ends_with(".test.toml"));
        files.map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
    }

    #[test]
    fn it_has_the_keys_that_the_reader_asks_for_and_no_others() {
        let schema = parsed();
        let keys = |pointer: &str, path: &str| {
            let keys = schema.pointer(pointer).unwrap().as_object().unwrap().keys();
            keys.map(|key| format!("{path}{key}")).collect::<Vec<_>>()
        };
        let publications = ["case.pushes.", "case.reply.", "case.dead_letter."];
        let publications =
            publications.iter().flat_map(|path| keys("/$defs/publication/properties", path));
        let mut known: BTreeSet<String> = publications.collect();
        known.extend(keys("/properties", ""));
        known.extend(keys("/$defs/step/properties", "case."));
        known.extend(keys("/$defs/exchange/properties", "case.calls."));
        // One of each, and a next message, which has the keys of a first one.
        let text = "[[case]]\nname = \"x\"\ntopic = \"a\"\ncalls = [{}]\npushes = [{}]\nreply = {}\n\
                    dead_letter = {}\n[[case.next]]\n[[case.next]]\nfetch = \"f\"\n";
        let asked = asked(text).into_iter().map(|path| path.replace("case.next.", "case."));
        let differ: Vec<_> = known.symmetric_difference(&asked.collect()).cloned().collect();
        assert!(differ.is_empty(), "only the schema, or only the reader: {differ:?}");
    }

    #[test]
    fn every_file_of_cases_is_valid_by_it() {
        let files = files();
        assert!(files.len() > 8, "{}", files.len());
        for (file, text) in files {
            assert_eq!(schema_errors(&parsed(), &text), Vec::<String>::new(), "{}", file.display());
        }
    }

    #[test]
    fn what_the_reader_finds_it_finds() {
        let errors = schema_errors(&parsed(), MISTAKEN).join("\n");
        for place in ["tabel", "statsu", "/calls/1", "/reply", "fails", "/next/0", "\"never\""] {
            assert!(errors.contains(place), "{place} is not in\n{errors}");
        }
        assert!(errors.contains("\"name\" is a required property"), "{errors}");
    }
}
