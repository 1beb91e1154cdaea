//! How the library reads, takes apart and puts together a [`Value`].

use bytes::Bytes;
use jaq_core::{
    Error, ValR, ValX,
    box_iter::{BoxIter, box_once},
    path::Opt,
    val::Range,
};
use jaq_json::{Map, Num, Rc, Val};

use super::{
    fuel::{burn, burn_bytes, burn_items},
    natives::indices,
    value::{ENTRY, Value, unshare_array, unshare_object},
};

/// Longest number written in a filter, in bytes.
const MAX_NUMBER: usize = 400;
/// What jq calls arrays and objects.
const ITERABLE: &str = "iterable (array or object)";

impl jaq_core::ValT for Value {
    fn from_num(number: &str) -> ValR<Self> {
        if number.len() > MAX_NUMBER {
            return Err(Error::str("a number has too many digits"));
        }
        // Many digits take many steps each.
        burn(1 + (number.len() * number.len() / 200) as u64);
        Val::from_num(number).map(|val| Self::new(val, 0)).map_err(|_| Error::str("no number"))
    }

    fn from_map<I: IntoIterator<Item = (Self, Self)>>(iter: I) -> ValR<Self> {
        burn(1);
        let (mut map, mut inner) = (Map::default(), 0);
        for (key, value) in iter {
            burn(ENTRY);
            let key = key.into_key()?;
            inner = value.depth.max(inner);
            map.insert(key, value.val);
        }
        Ok(Self::object(map, inner))
    }

    fn key_values(self) -> BoxIter<'static, ValR<(Self, Self), Self>> {
        burn(1);
        let inner = self.inner();
        let pair = move |key: Val, value: Val| {
            burn(2);
            Ok((Self::new(key, 0), Self::new(value, inner)))
        };
        match self.val {
            Val::Arr(items) => {
                let items = (0..items.len()).map(move |at| (at, items[at].clone()));
                Box::new(items.map(move |(at, item)| pair(Val::from(at), item)))
            }
            Val::Obj(map) => Box::new((0..map.len()).filter_map(move |at| {
                let (key, value) = map.get_index(at)?;
                Some(pair(key.clone(), value.clone()))
            })),
            _ => box_once(Err(Error::typ(self, ITERABLE))),
        }
    }

    fn values(self) -> Box<dyn Iterator<Item = ValR<Self>>> {
        burn(1);
        let inner = self.inner();
        let part = move |val| {
            burn(1);
            Ok(Self::new(val, inner))
        };
        match self.val {
            // A value without another owner is handed over, so that it can be changed in place.
            Val::Arr(items) => match Rc::try_unwrap(items) {
                Ok(items) => Box::new(items.into_iter().map(part)),
                Err(items) => Box::new((0..items.len()).map(move |at| part(items[at].clone()))),
            },
            Val::Obj(map) => match Rc::try_unwrap(map) {
                Ok(map) => Box::new(map.into_iter().map(move |(_, value)| part(value))),
                Err(map) => Box::new((0..map.len()).filter_map(move |at| {
                    let (_, value) = map.get_index(at)?;
                    Some(part(value.clone()))
                })),
            },
            _ => box_once(Err(Error::typ(self, ITERABLE))),
        }
    }

    fn index(self, index: &Self) -> ValR<Self> {
        self.get(index).map(|found| found.unwrap_or_else(|| Self::new(Val::Null, 0)))
    }

    fn range(self, range: Range<&Self>) -> ValR<Self> {
        burn(1);
        let (from, to) = (bound(range.start)?, bound(range.end)?);
        match &self.val {
            Val::Arr(items) => {
                let (from, to) = clip(from, to, items.len());
                burn_items(to - from, 1);
                Ok(Self::array(items[from..to].to_vec(), self.inner()))
            }
            Val::TStr(bytes) => {
                burn_bytes(bytes.len());
                let Ok(text) = std::str::from_utf8(bytes) else {
                    return Err(Error::str("no UTF-8"));
                };
                let (from, to) = clip(from, to, text.chars().count());
                let mut starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
                let start = starts.nth(from).unwrap_or(text.len());
                let end = if to == from {
                    start
                } else {
                    starts.nth(to - from - 1).unwrap_or(text.len())
                };
                Ok(Self::new(Val::utf8_str(bytes.slice(start..end)), 0))
            }
            _ => Err(Error::typ(self, "rangeable (array or string)")),
        }
    }

    fn map_values<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        match &self.val {
            Val::Arr(_) => self
                .values()
                .flat_map(|item| f(item.unwrap_or_else(|_| Self::new(Val::Null, 0))))
                .collect(),
            Val::Obj(_) => {
                let (mut map, mut inner) = (Map::default(), 0);
                for pair in self.key_values() {
                    let (key, value) = pair?;
                    if let Some(value) = f(value).next().transpose()? {
                        burn(ENTRY);
                        inner = value.depth.max(inner);
                        map.insert(key.val, value.val);
                    }
                }
                Ok(Self::object(map, inner))
            }
            _ => opt.fail(self, |value| Error::typ(value, ITERABLE).into()),
        }
    }

    fn map_index<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        index: &Self,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        burn(1);
        let (depth, inner) = (self.depth, self.inner());
        match (self.val, &index.val) {
            (Val::Arr(items), Val::Obj(range)) => {
                let bound =
                    |name| range.get(&Val::utf8_str(name)).cloned().map(|v| Self::new(v, 0));
                let (start, end) = (bound("start"), bound("end"));
                Self::new(Val::Arr(items), depth).map_range(start.as_ref()..end.as_ref(), opt, f)
            }
            (Val::Obj(mut map), key @ Val::TStr(name)) => {
                burn_bytes(name.len());
                let entries = unshare_object(&mut map);
                let before = entries.get_mut(key).map(std::mem::take);
                let is_there = before.is_some();
                let value = Self::new(before.unwrap_or_default(), inner);
                let mut grown = 0;
                match f(value).next().transpose()? {
                    Some(value) => {
                        burn(ENTRY);
                        grown = value.depth;
                        entries.insert(key.clone(), value.val);
                    }
                    // The last entry takes its place: the others need not move.
                    None if is_there => {
                        entries.swap_remove(key);
                    }
                    None => {}
                }
                Ok(Self::new(Val::Obj(map), depth.max(grown + 1)))
            }
            (Val::Arr(mut items), Val::Num(number)) => {
                let Some(at) = position(number, items.len()) else {
                    let value = Self::new(Val::Arr(items), depth);
                    return opt.fail(value, |_| {
                        Error::str(format_args!("index {index} is out of bounds")).into()
                    });
                };
                let entries = unshare_array(&mut items);
                let value = Self::new(std::mem::take(&mut entries[at]), inner);
                let mut grown = 0;
                if let Some(value) = f(value).next().transpose()? {
                    grown = value.depth;
                    entries[at] = value.val;
                } else {
                    burn_bytes(entries.len() - at);
                    entries.remove(at);
                }
                Ok(Self::new(Val::Arr(items), depth.max(grown + 1)))
            }
            (val, _) => {
                opt.fail(Self::new(val, depth), |value| Error::index(value, index.clone()).into())
            }
        }
    }

    fn map_range<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        range: Range<&Self>,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        burn(1);
        let (depth, inner) = (self.depth, self.inner());
        let Val::Arr(mut items) = self.val else {
            return opt.fail(self, |value| Error::typ(value, "array").into());
        };
        let (from, to) = match (bound(range.start), bound(range.end)) {
            (Ok(from), Ok(to)) => clip(from, to, items.len()),
            (Err(error), _) | (_, Err(error)) => {
                return opt.fail(Self::new(Val::Arr(items), depth), |_| error.into());
            }
        };
        burn_items(items.len() - from, 1);
        let slice = Self::array(items[from..to].to_vec(), inner);
        let (new, grown) = match f(slice).next().transpose()? {
            Some(Self { val: Val::Arr(new), depth: grown }) => (new, grown),
            Some(value) => return Err(Error::typ(value, "array").into()),
            None => (Rc::default(), 0),
        };
        burn_items(new.len(), 1);
        unshare_array(&mut items).splice(from..to, new.iter().cloned());
        Ok(Self::new(Val::Arr(items), depth.max(grown)))
    }

    fn as_bool(&self) -> bool {
        super::is_true(&self.val)
    }

    fn into_string(self) -> Self {
        if matches!(self.val, Val::TStr(_)) { self } else { self.into_json() }
    }
}

impl Value {
    /// What stands at this index, `None` where nothing does.
    pub(super) fn get(self, index: &Self) -> Result<Option<Self>, Error<Self>> {
        burn(1);
        let inner = self.inner();
        let found = match (&self.val, &index.val) {
            // The keys of an object are texts.
            (Val::Null, _) | (Val::Obj(_), Val::Null | Val::Bool(_) | Val::Num(_)) => None,
            (Val::Arr(items), Val::Num(number)) => {
                position(number, items.len()).map(|at| items[at].clone())
            }
            (Val::Obj(map), key @ Val::TStr(name)) => {
                burn_bytes(name.len());
                map.get(key).cloned()
            }
            (Val::Arr(_), Val::Arr(_)) => return indices(&self, index).map(Some),
            (Val::Arr(_) | Val::TStr(_), Val::Obj(range)) => {
                let bound =
                    |name| range.get(&Val::utf8_str(name)).cloned().map(|v| Self::new(v, 0));
                let (start, end) = (bound("start"), bound("end"));
                return jaq_core::ValT::range(self, start.as_ref()..end.as_ref()).map(Some);
            }
            _ => return Err(Error::index(self, index.clone())),
        };
        Ok(found.map(|val| Self::new(val, inner)))
    }

    /// JSON has no other keys than texts.
    fn into_key(self) -> ValR<Val, Self> {
        match self.val {
            Val::TStr(name) => {
                burn_bytes(name.len());
                Ok(Val::TStr(name))
            }
            _ => Err(Error::typ(self, "key of an object, which is a string")),
        }
    }
}

/// Where an index points to, counted from the end when it is negative.
fn position(index: &Num, len: usize) -> Option<usize> {
    if !matches!(index, Num::Int(_) | Num::BigInt(_)) {
        return None;
    }
    let index = index.as_isize()?;
    let at = match usize::try_from(index) {
        Ok(at) => at,
        Err(_) => len.checked_sub(index.unsigned_abs())?,
    };
    (at < len).then_some(at)
}

/// One end of a slice.
fn bound(value: Option<&Value>) -> Result<Option<isize>, Error<Value>> {
    match value.map(|value| &value.val) {
        None | Some(Val::Null) => Ok(None),
        Some(Val::Num(number @ (Num::Int(_) | Num::BigInt(_)))) => {
            let far = if *number < Num::Int(0) { isize::MIN } else { isize::MAX };
            Ok(Some(number.as_isize().unwrap_or(far)))
        }
        Some(_) => Err(Error::str("a slice is bounded by integers")),
    }
}

/// Both ends of a slice of something of this length.
fn clip(from: Option<isize>, to: Option<isize>, len: usize) -> (usize, usize) {
    let clip = |bound: isize| match usize::try_from(bound) {
        Ok(at) => at.min(len),
        Err(_) => len.saturating_sub(bound.unsigned_abs()),
    };
    let from = from.map_or(0, clip);
    (from, to.map_or(len, clip).max(from))
}

impl jaq_std::ValT for Value {
    fn into_seq<S: FromIterator<Self>>(self) -> Result<S, Self> {
        let inner = self.inner();
        match self.val {
            Val::Arr(items) => {
                burn_items(items.len(), 1);
                Ok(items.iter().map(|item| Self::new(item.clone(), inner)).collect())
            }
            _ => Err(self),
        }
    }

    fn is_int(&self) -> bool {
        matches!(self.val, Val::Num(Num::Int(_) | Num::BigInt(_)))
    }

    fn as_isize(&self) -> Option<isize> {
        burn(1);
        match &self.val {
            Val::Num(number) => number.as_isize(),
            _ => None,
        }
    }

    fn as_f64(&self) -> Option<f64> {
        // What is calculated with it takes many steps.
        burn(5);
        self.val.as_f64()
    }

    fn is_utf8_str(&self) -> bool {
        matches!(self.val, Val::TStr(_))
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        match &self.val {
            Val::TStr(text) => {
                burn_bytes(text.len());
                Some(text)
            }
            _ => None,
        }
    }

    fn as_sub_str(&self, part: &[u8]) -> Self {
        burn_bytes(part.len());
        match &self.val {
            Val::TStr(text) if std::str::from_utf8(part).is_ok() => {
                Self::new(Val::utf8_str(text.slice_ref(part)), 0)
            }
            _ => Self::from_utf8_bytes(part.to_vec()),
        }
    }

    /// All texts are UTF-8, so that what is written is JSON.
    fn from_utf8_bytes(bytes: impl AsRef<[u8]> + Send + 'static) -> Self {
        burn_bytes(bytes.as_ref().len());
        match std::str::from_utf8(bytes.as_ref()) {
            Ok(_) => Self::text(Bytes::from_owner(bytes)),
            Err(_) => Self::text(String::from_utf8_lossy(bytes.as_ref()).into_owned()),
        }
    }
}
