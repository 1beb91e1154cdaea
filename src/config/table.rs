//! Reads `[filters]`, `[[fetch]]` and `[[route]]`, and checks that the rows fit each other.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    echoes, fetch,
    filters::Filters,
    reader::{Reader, Section},
    request::Requests,
    route::{self, Known},
    values::label,
};
use crate::{
    table::{
        Table,
        identity::Identity,
        route::{Credentials, Route},
    },
    topic::patterns::Patterns,
};

/// `credentials` is what a row asks for that says nothing of it; `is_member` says that the gateway is one of a share group.
pub(super) fn read<'a>(
    reader: &'a Reader<'a>,
    root: &Section<'a>,
    identity: Identity,
    credentials: Credentials,
    requests: &Requests<'_, 'a>,
    is_member: bool,
) -> Table {
    let filters = Filters::read(root);
    let fetches: Vec<Known> = rows(root, "fetch")
        .into_iter()
        .map(|(name, row)| Known {
            name: name.clone(),
            fetch: fetch::read(row, name, &filters, requests, is_member),
        })
        .collect();
    let rows = rows(root, "route");
    if rows.is_empty() && !fetches.iter().any(Known::runs_by_itself) {
        let text = "the table has no [[route]] and no [[fetch]] with `every`, so nothing would be done; write one";
        reader.mistake(None, "route", text);
    }
    let mut routes: Vec<Route> = Vec::new();
    let mut read: Vec<Section<'a>> = Vec::new();
    for (name, row) in rows {
        let route = route::read(&row, name, &filters, &fetches, &identity, credentials, requests);
        if let Some(route) = route {
            overlaps(&row, &route, &routes);
            routes.push(route);
            read.push(row);
        } else {
            row.finish();
        }
    }
    filters.finish();
    let patterns = routes.iter().map(|route| (route.on.clone(), route.sender.clone()));
    let patterns = Patterns::new(patterns.collect());
    echoes::check(&read, &patterns, &routes, &fetches);
    read.into_iter().for_each(Section::finish);
    Table {
        patterns: Arc::new(patterns),
        // It comes with the client identifier.
        replays: None,
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

/// A topic belongs to one row: of two that match it one lies inside the other, and has it.
fn overlaps(row: &Section<'_>, route: &Route, earlier: &[Route]) {
    let lies_inside =
        |inner: &Route, outer: &Route| outer.on.covers(&inner.on) && !inner.on.covers(&outer.on);
    for other in earlier.iter().filter(|other| other.on.overlaps(&route.on)) {
        if lies_inside(route, other) || lies_inside(other, route) {
            continue;
        }
        let (own, others) = (route.on.as_str(), other.on.as_str());
        let text = format!(
            "`{own}` and `{others}` of route `{}` match the same topics, and neither lies inside the other; a topic \
             belongs to one row",
            other.name
        );
        row.mistake(None, "on", text);
    }
}
