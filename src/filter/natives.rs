//! The functions a filter can call: the library's, without those that cannot be bounded, and with a price for
//! those that do much in one step.

use std::time::SystemTime;

use jaq_core::{
    DataT, Error, ValR,
    load::{self, parse::Def},
    native::{self, Fun, bome, unary, v},
};
use jaq_json::Val;

use super::{
    fuel::{Spent, burn, burn_bytes, burn_items, stop},
    value::{Value, compare, equal},
};
use crate::wall_clock;

/// Functions of the library that are left out or replaced: `env` would show the environment to a table, `jn` and `yn`
/// take as many steps as a number says, and `now` must follow the clock of a test.
const REMOVED: [&str; 4] = ["env", "jn", "yn", "now"];
/// Functions of the library that do much in one step: each is called by another name, once it is paid for.
const PAID: [(&str, &str); 13] = [
    ("matches", "unpaid_matches"),
    ("split_matches", "unpaid_split_matches"),
    ("split_", "unpaid_split_"),
    ("escape_html", "unpaid_escape_html"),
    ("unescape_html", "unpaid_unescape_html"),
    ("fromdateiso8601", "unpaid_fromdateiso8601"),
    ("todateiso8601", "unpaid_todateiso8601"),
    ("strftime", "unpaid_strftime"),
    ("strflocaltime", "unpaid_strflocaltime"),
    ("gmtime", "unpaid_gmtime"),
    ("localtime", "unpaid_localtime"),
    ("strptime", "unpaid_strptime"),
    ("mktime", "unpaid_mktime"),
];
/// What stands in their place.
const DEFINITIONS: &str = r"
def matches($re; $flags):       pay_regex($re; $flags) | unpaid_matches($re; $flags);
def split_matches($re; $flags): pay_regex($re; $flags) | unpaid_split_matches($re; $flags);
def split_($re; $flags):        pay_regex($re; $flags) | unpaid_split_($re; $flags);
def escape_html:         pay(500) | unpaid_escape_html;
def unescape_html:       pay(500) | unpaid_unescape_html;
def fromdateiso8601:     pay(10)  | unpaid_fromdateiso8601;
def todateiso8601:       pay(10)  | unpaid_todateiso8601;
def strftime($format):   pay(50)  | unpaid_strftime($format);
def strflocaltime($format): pay(200) | unpaid_strflocaltime($format);
def gmtime:              pay(10)  | unpaid_gmtime;
def localtime:           pay(200) | unpaid_localtime;
def strptime($format):   pay(50)  | unpaid_strptime($format);
def mktime:              pay(10)  | unpaid_mktime;
";

type Native<D> = native::Filter<jaq_core::RunPtr<D>>;

/// Where the library's own definitions are compiled from.
pub(super) fn definitions() -> impl Iterator<Item = Def<&'static str>> {
    let own = load::parse(DEFINITIONS, |parser| parser.defs()).unwrap_or_default();
    own.into_iter().chain(jaq_core::defs()).chain(jaq_std::defs()).chain(jaq_json::defs())
}

/// Functions that are not written in jq.
pub(super) fn functions<D: for<'a> DataT<V<'a> = Value>>() -> impl Iterator<Item = Fun<D>> {
    let library = jaq_core::funs().chain(jaq_std::funs());
    let library = library.filter(|(name, ..)| !REMOVED.contains(name));
    let library = library.map(|(name, arguments, function)| {
        let paid = PAID.iter().find(|(paid, _)| *paid == name);
        (paid.map_or(name, |(_, unpaid)| unpaid), arguments, function)
    });
    library.chain(own())
}

/// What the library has for its own kind of value only, and the prices.
fn own<D: for<'a> DataT<V<'a> = Value>>() -> impl Iterator<Item = Fun<D>> {
    let functions: [Native<D>; 10] = [
        ("pay", v(1), |cv| {
            unary(cv, |value, price| {
                burn(jaq_std::ValT::as_isize(&price).and_then(|p| p.try_into().ok()).unwrap_or(0));
                Ok(value)
            })
        }),
        ("pay_regex", v(2), |mut cv| {
            let (flags, regex) = (cv.0.pop_var(), cv.0.pop_var());
            if let (Val::TStr(text), Val::TStr(regex), Val::TStr(flags)) =
                (&cv.1.val, &regex.val, &flags.val)
            {
                pay_regex(text.len(), regex, flags);
            }
            bome(Ok(cv.1))
        }),
        ("fromjson", v(0), |cv| {
            bome(match &cv.1.val {
                Val::TStr(text) => {
                    // Parsed, a byte can become many.
                    burn_items(text.len(), 2);
                    super::parse(text).map(Value::input).map_err(|error| Error::str(error.0))
                }
                _ => Err(Error::str("only a text can be JSON")),
            })
        }),
        ("tojson", v(0), |cv| bome(Ok(cv.1.into_json()))),
        ("now", v(0), |_| {
            let since = wall_clock::now().duration_since(SystemTime::UNIX_EPOCH);
            bome(Ok(Value::input(since.unwrap_or_default().as_secs_f64().into())))
        }),
        ("length", v(0), |cv| bome(length(cv.1))),
        ("has", v(1), |cv| {
            unary(cv, |value, key| value.get(&key).map(|found| found.is_some().into()))
        }),
        ("contains", v(1), |cv| unary(cv, |a, b| Ok(contains(&a.val, &b.val).into()))),
        ("indices", v(1), |cv| unary(cv, |value, part| indices(&value, &part))),
        ("bsearch", v(1), |cv| {
            unary(cv, |value, wanted| {
                let Val::Arr(items) = &value.val else { return Err(Error::typ(value, "array")) };
                let found = items.binary_search_by(|item| compare(item, &wanted.val));
                let at = |at| isize::try_from(at).unwrap_or(isize::MAX);
                Ok(found.map_or_else(|to_be| -1 - at(to_be), at).into())
            })
        }),
    ];
    functions.into_iter().map(native::run::<D>)
}

fn length(value: Value) -> ValR<Value> {
    Ok(match &value.val {
        Val::Null => 0_usize.into(),
        Val::Num(_) if value < Value::from(0_isize) => return -value,
        Val::Num(_) => value,
        Val::TStr(text) => {
            burn_bytes(text.len());
            String::from_utf8_lossy(text).chars().count().into()
        }
        Val::Arr(items) => items.len().into(),
        Val::Obj(map) => map.len().into(),
        _ => return Err(Error::str(format_args!("{value} has no length"))),
    })
}

/// Whether `b` is a part of `a`: a text in a text, items or entries that contain those of the other.
fn contains(a: &Val, b: &Val) -> bool {
    burn(1);
    match (a, b) {
        (Val::Arr(a), Val::Arr(b)) => b.iter().all(|b| a.iter().any(|a| contains(a, b))),
        (Val::Obj(a), Val::Obj(b)) => {
            b.iter().all(|(key, b)| a.get(key).is_some_and(|a| contains(a, b)))
        }
        (Val::TStr(a), Val::TStr(b)) => {
            burn_bytes(a.len() + b.len());
            String::from_utf8_lossy(a).contains(&*String::from_utf8_lossy(b))
        }
        (a, b) => equal(a, b),
    }
}

/// Where a part stands in the whole.
pub(super) fn indices(whole: &Value, part: &Value) -> ValR<Value> {
    let found: Vec<Val> = match (&whole.val, &part.val) {
        (Val::TStr(whole), Val::TStr(part)) if !part.is_empty() => {
            burn_items(whole.len(), 1);
            let starts = String::from_utf8_lossy(whole);
            let starts = starts.char_indices().map(|(at, _)| at).enumerate();
            let found = starts.filter(|(_, at)| {
                whole.get(*at..).is_some_and(|rest| {
                    burn_bytes(part.len());
                    rest.starts_with(part)
                })
            });
            found.map(|(at, _)| Val::from(at)).collect()
        }
        (Val::Arr(_), Val::Arr(part)) if part.is_empty() => Vec::new(),
        (Val::TStr(_), Val::TStr(_)) => Vec::new(),
        (Val::Arr(whole), Val::Arr(part)) => {
            let windows = whole.windows(part.len()).enumerate();
            let found =
                windows.filter(|(_, items)| items.iter().zip(&**part).all(|(a, b)| equal(a, b)));
            found.map(|(at, _)| Val::from(at)).collect()
        }
        (Val::Arr(whole), part) => {
            let found = whole.iter().enumerate().filter(|(_, item)| equal(item, part));
            found.map(|(at, _)| Val::from(at)).collect()
        }
        _ => return Err(Error::index(whole.clone(), part.clone())),
    };
    Ok(Value::array(found, 0))
}

/// The price of a regular expression over a text of this length; a device may have written both.
///
/// Matching goes through the text once, with as many states as the expression has at most, and what each group
/// has caught is kept for each; where all matches are wanted, each byte may be one.
fn pay_regex(text: usize, regex: &[u8], flags: &[u8]) {
    let groups = regex.split(|byte| *byte == b'(').count();
    let states = states(regex);
    burn_items(states, 1);
    burn_items(states.saturating_mul(text).saturating_mul(groups) / 16, 1);
    if flags.contains(&b'g') {
        burn_items(text.saturating_mul(groups), 2);
    }
}

/// About how many states an expression has, rather too many than too few: `{n}` repeats what stands before it.
fn states(regex: &[u8]) -> usize {
    /// Deeper ones are refused.
    const MAX_GROUPS: usize = 50;
    let (mut open, mut total, mut last) = (Vec::new(), 0_usize, 0_usize);
    let mut bytes = regex.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'(' => {
                open.push(total);
                (total, last) = (0, 0);
                if open.len() > MAX_GROUPS {
                    stop(Spent::Stack);
                }
            }
            b')' => {
                last = total.saturating_add(2);
                total = open.pop().unwrap_or(0).saturating_add(last);
            }
            b'{' => {
                let inside: Vec<u8> = bytes.by_ref().take_while(|b| **b != b'}').copied().collect();
                let numbers = inside.split(|b| !b.is_ascii_digit());
                let number =
                    |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<usize>().ok();
                let times = numbers.filter_map(number).max().unwrap_or(1);
                total = total.saturating_add(last.saturating_mul(times));
                last = last.saturating_mul(times);
            }
            b'\\' => {
                bytes.next();
                (total, last) = (total.saturating_add(4), 4);
            }
            _ => (total, last) = (total.saturating_add(1), 1),
        }
    }
    open.iter().fold(total, |sum, part| sum.saturating_add(*part)).max(1)
}
