//! What is written: variables for keys that are names of the operator's own choice, and keys that are there.

use super::{PREFIX, Scalar, Section, is_service_link};

impl<'a> Section<'a> {
    /// Those below this section, each with the key that it stands for.
    pub(in crate::config) fn variables(&self) -> Vec<(String, Scalar<'a>)> {
        let prefix = format!("{PREFIX}{}_", self.path.replace('.', "_").to_uppercase());
        let of_section = self.reader.env.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(&prefix)?;
            let scalar = Scalar { text: value.into(), span: None, place: name.clone() };
            (!is_service_link(name, value)).then(|| (key.to_lowercase(), scalar))
        });
        let variables: Vec<_> = of_section.collect();
        let names = variables.iter().map(|(_, scalar)| scalar.place.clone());
        self.reader.env_names.borrow_mut().extend(names);
        variables
    }

    /// Whether something stands under a key that was asked for.
    pub(in crate::config) fn is_written(&self, key: &str) -> bool {
        self.known.borrow().get(key).is_some_and(Option::is_some)
    }
}
