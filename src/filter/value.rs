//! A value as a running filter has it: JSON that burns fuel with everything that is done to it, and that
//! never nests too deeply.

use std::{
    cmp::Ordering,
    fmt::{self, Write as _},
};

use bytes::Bytes;
use jaq_core::val::Range;
use jaq_json::{Map, Rc, Val};

use super::fuel::{Spent, burn, burn_bytes, burn_items, stop};

/// Deepest nesting inside a filter, in levels.
const MAX_DEPTH: u16 = 256;
/// What an entry of an object costs: it is kept several times.
pub(super) const ENTRY: u64 = 3;
/// Longest text of a value in an error, in bytes.
const MAX_SHOWN: usize = 150;

/// A value in a run of a filter.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) val: Val,
    /// How deeply it nests, at most. Nothing has a depth of its own to ask for: it is known of the whole, and
    /// a part has less.
    pub(super) depth: u16,
}

impl Value {
    /// A value from outside, which nests no deeper than what is read as JSON.
    pub(super) fn input(val: Val) -> Self {
        Self::new(val, MAX_DEPTH / 2)
    }

    /// A value that nests no deeper than this.
    pub(super) fn new(val: Val, depth: u16) -> Self {
        let depth = match val {
            Val::Arr(_) | Val::Obj(_) => depth,
            _ => 0,
        };
        if depth <= MAX_DEPTH {
            return Self { val, depth };
        }
        let depth = measure(&val);
        if depth > MAX_DEPTH {
            stop(Spent::Stack);
        }
        Self { val, depth }
    }

    /// How deeply a part of it nests, at most.
    pub(super) fn inner(&self) -> u16 {
        self.depth.saturating_sub(1)
    }

    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        burn_bytes(text.len());
        Self::new(Val::utf8_str(text), 0)
    }

    pub(super) fn array(items: Vec<Val>, inner: u16) -> Self {
        Self::new(Val::Arr(Rc::new(items)), inner + 1)
    }

    pub(super) fn object(map: Map, inner: u16) -> Self {
        Self::new(Val::obj(map), inner + 1)
    }

    /// As JSON. Other than JSON comes out where the value is none.
    pub(super) fn into_json(self) -> Self {
        let mut text = Metered(String::new());
        // Writing into a string cannot fail.
        let _ = write!(text, "{}", self.val);
        Self::new(Val::utf8_str(text.0), 0)
    }
}

/// How deeply a value nests. Shared parts are counted each time.
fn measure(val: &Val) -> u16 {
    burn(1);
    let inner = match val {
        Val::Arr(items) => items.iter().map(measure).max(),
        Val::Obj(map) => map.values().map(measure).max(),
        _ => return 0,
    };
    inner.unwrap_or(0) + 1
}

impl Clone for Value {
    fn clone(&self) -> Self {
        burn(1);
        Self { val: self.val.clone(), depth: self.depth }
    }
}

/// A text that burns fuel as it grows.
struct Metered(String);

impl fmt::Write for Metered {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        burn_bytes(text.len());
        self.0.push_str(text);
        Ok(())
    }
}

/// The beginning of a text.
struct Beginning(String);

impl fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        burn(1);
        let room = text.floor_char_boundary(MAX_SHOWN.saturating_sub(self.0.len()));
        self.0.push_str(text.get(..room).unwrap_or_default());
        if room < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// For errors, which quote the value: only its beginning.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Beginning(String::new());
        let whole = write!(text, "{}", self.val).is_ok();
        write!(f, "{}{}", text.0, if whole { "" } else { "…" })
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.val, &other.val)
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.val, &other.val)
    }
}

pub(super) fn equal(a: &Val, b: &Val) -> bool {
    burn(1);
    match (a, b) {
        (Val::Arr(a), Val::Arr(b)) => {
            a.len() == b.len() && a.iter().zip(&**b).all(|(a, b)| equal(a, b))
        }
        (Val::Obj(a), Val::Obj(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (Val::TStr(a), Val::TStr(b)) if a.len() == b.len() => {
            burn_bytes(a.len());
            a == b
        }
        (a, b) => a == b,
    }
}

pub(super) fn compare(a: &Val, b: &Val) -> Ordering {
    burn(1);
    match (a, b) {
        (Val::Arr(a), Val::Arr(b)) => {
            let unequal = a.iter().zip(&**b).map(|(a, b)| compare(a, b)).find(|o| o.is_ne());
            unequal.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        // By their keys first, then by their values in the order of keys.
        (Val::Obj(a), Val::Obj(b)) => {
            burn_items(a.len() + b.len(), ENTRY);
            let (mut a, mut b): (Vec<_>, Vec<_>) = (a.iter().collect(), b.iter().collect());
            a.sort_by(|(a, _), (b, _)| compare(a, b));
            b.sort_by(|(a, _), (b, _)| compare(a, b));
            let keys = a.iter().zip(&b).map(|((a, _), (b, _))| compare(a, b)).find(|o| o.is_ne());
            let values =
                || a.iter().zip(&b).map(|((_, a), (_, b))| compare(a, b)).find(|o| o.is_ne());
            keys.unwrap_or_else(|| {
                a.len().cmp(&b.len()).then_with(|| values().unwrap_or(Ordering::Equal))
            })
        }
        (Val::TStr(a), Val::TStr(b)) => {
            burn_bytes(a.len().min(b.len()));
            a.cmp(b)
        }
        (a, b) => a.cmp(b),
    }
}

/// What an array that others have as well costs to change.
pub(super) fn unshare_array(items: &mut Rc<Vec<Val>>) -> &mut Vec<Val> {
    if Rc::get_mut(items).is_none() {
        burn_items(items.len(), 1);
    }
    Rc::make_mut(items)
}

/// What an object that others have as well costs to change.
pub(super) fn unshare_object(map: &mut Rc<Map>) -> &mut Map {
    if Rc::get_mut(map).is_none() {
        burn_items(map.len(), ENTRY);
    }
    Rc::make_mut(map)
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        burn(1);
        Self::new(Val::Bool(value), 0)
    }
}

impl From<isize> for Value {
    fn from(value: isize) -> Self {
        burn(1);
        Self::new(Val::from(value), 0)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        burn(1);
        Self::new(Val::from(value), 0)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        burn(1);
        Self::new(Val::from(value), 0)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::text(value)
    }
}

/// How a slice stands in a path.
impl From<Range<Self>> for Value {
    fn from(range: Range<Self>) -> Self {
        burn(2 * ENTRY);
        let bound = |name: &'static str, value: Option<Self>| {
            value.map(|value| (Val::utf8_str(name), value.val))
        };
        let bounds = bound("start", range.start).into_iter().chain(bound("end", range.end));
        Self::object(bounds.collect(), 0)
    }
}

impl FromIterator<Self> for Value {
    fn from_iter<I: IntoIterator<Item = Self>>(iter: I) -> Self {
        burn(1);
        let mut inner = 0;
        let kept = iter.into_iter().map(|value| {
            burn(1);
            inner = value.depth.max(inner);
            value.val
        });
        let items = kept.collect();
        Self::array(items, inner)
    }
}
