//! Reads `[replies]` and `[dead_letter]`: topics that the gateway publishes on for messages of every row.

use super::{echoes, reader::Section, values::topic_template};
use crate::{table::Table, template::Template, topic::Pattern};

/// Where failures and dead letters go; `None` is nowhere.
pub(super) struct Destinations {
    pub(super) errors: Option<Template>,
    pub(super) dead_letter: Option<Template>,
    /// Keys that were left out and whose default does not fit the table.
    pub(super) unfit_defaults: Vec<&'static str>,
}

pub(super) fn destinations(root: &Section<'_>, table: &Table) -> Destinations {
    let (replies, letters) = (root.section("replies"), root.section("dead_letter"));
    let errors = destination(&replies, "errors", table, &[]);
    let dead_letter = destination(&letters, "topic", table, &["route"]);
    replies.finish();
    letters.finish();
    let unfit =
        [("[replies] errors", errors.is_err()), ("[dead_letter] topic", dead_letter.is_err())];
    Destinations {
        errors: errors.unwrap_or_default(),
        dead_letter: dead_letter.unwrap_or_default(),
        unfit_defaults: unfit.into_iter().filter_map(|(key, unfit)| unfit.then_some(key)).collect(),
    }
}

/// The key is left out, and its default needs a capture that some row does not have.
struct UnfitDefault;

/// A topic that every row can fill in: with its captures and the names that are `given`. What is written and does
/// not fit is a mistake. The default was made for the captures of the shipped table, so a table with others does
/// without it, unless it names one of its own.
fn destination(
    section: &Section<'_>,
    key: &'static str,
    table: &Table,
    given: &[&str],
) -> Result<Option<Template>, UnfitDefault> {
    let written = section.written(key);
    let is_default = written.is_none();
    let scalar = written.or_else(|| section.shipped(key));
    let Some(scalar) = scalar.filter(|scalar| !scalar.text.is_empty()) else { return Ok(None) };
    let template = match topic_template(&scalar.text) {
        Ok(template) => template,
        Err(text) => {
            section.mistake_in(scalar, text);
            return Ok(None);
        }
    };
    let uncaptured = template.names().filter(|name| !given.contains(name)).find_map(|name| {
        // Nothing is told of what a row swallows.
        let mut telling = table.routes.iter().filter(|route| !route.swallows());
        let route = telling.find(|route| !route.on.captures(name))?;
        Some(format!("`{{{name}}}` is not captured by route `{}`", route.name))
    });
    if let Some(text) = uncaptured {
        if is_default {
            return Err(UnfitDefault);
        }
        section.mistake_in(scalar, text);
        return Ok(None);
    }
    // A row would take what the gateway publishes there for a device's message.
    let mut listening = table.routes.iter().flat_map(|route| {
        let topics = Pattern::of_template(template.as_str(), Some(&route.on));
        echoes::listening(&topics, table.patterns.as_ref(), &table.routes)
    });
    if let Some(route) = listening.next() {
        let name = &route.name;
        let text =
            format!("route `{name}` listens on this topic; write another one, or \"\" for none");
        section.mistake_in(scalar, text);
    }
    Ok(Some(template))
}
