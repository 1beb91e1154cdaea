//! Reads `[filters]`, `[[fetch]]` and `[[route]]`, and checks that the rows fit each other.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    echoes, fetch,
    filters::Filters,
    reader::{Reader, Section},
    route::{self, Known},
    values::label,
};
use crate::table::{
    Table,
    identity::Identity,
    route::{Credentials, Route},
};

/// `credentials` is what a row asks for that says nothing of it.
pub(super) fn read<'a>(
    reader: &'a Reader<'a>,
    root: &Section<'a>,
    identity: Identity,
    credentials: Credentials,
) -> Table {
    let filters = Filters::read(root);
    let fetches: Vec<Known> = rows(root, "fetch")
        .into_iter()
        .map(|(name, row)| Known { name: name.clone(), fetch: fetch::read(row, name, &filters) })
        .collect();
    let rows = rows(root, "route");
    if rows.is_empty() {
        reader.mistake(None, "route", "the table has no [[route]]; the gateway would do nothing");
    }
    let mut routes: Vec<Route> = Vec::new();
    let mut read: Vec<Section<'a>> = Vec::new();
    for (name, row) in rows {
        if let Some(route) = route::read(&row, name, &filters, &fetches, &identity, credentials) {
            overlaps(&row, &route, &routes);
            routes.push(route);
            read.push(row);
        } else {
            row.finish();
        }
    }
    echoes::check(&read, &routes);
    read.into_iter().for_each(Section::finish);
    filters.finish();
    Table {
        routes,
        fetches: fetches.into_iter().filter_map(|known| known.fetch).collect(),
        identity,
    }
}

/// The rows of a kind with their names, if those are legal.
fn rows<'a>(root: &Section<'a>, kind: &'static str) -> Vec<(Option<Arc<str>>, Section<'a>)> {
    let mut seen = BTreeSet::new();
    let rows = root.rows(kind).into_iter().map(|row| {
        let missing = "missing: the label of this row in metrics and logs";
        let name = row.required("name", label, missing);
        if name.clone().is_some_and(|name| !seen.insert(name)) {
            row.mistake(None, "name", "duplicate name; another row has it already");
        }
        (name, row)
    });
    rows.collect()
}

/// A topic belongs to one row.
fn overlaps(row: &Section<'_>, route: &Route, earlier: &[Route]) {
    for other in earlier.iter().filter(|other| other.on.overlaps(&route.on)) {
        let (own, others) = (route.on.as_str(), other.on.as_str());
        let text = format!(
            "`{own}` and `{others}` of route `{}` match the same topics; a topic belongs to one row",
            other.name
        );
        row.mistake(None, "on", text);
    }
}
