//! What is calculated with values: sums, products, merged objects, split texts.

use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

use bytes::{Bytes, BytesMut};
use jaq_core::{Error, ValR, ops::Math};
use jaq_json::{Map, Num, Rc, Val};

use super::{
    fuel::{burn, burn_bytes, burn_items},
    value::{ENTRY, Value, compare, unshare_array, unshare_object},
};

/// Largest number that is calculated with, in bits.
const MAX_BITS: u64 = 1400;

fn numbers(a: Num, op: Math, b: Num) -> ValR<Value> {
    burn(1);
    let is_large = |n: &Num| matches!(n, Num::BigInt(n) if n.bits() > MAX_BITS);
    if is_large(&a) || is_large(&b) {
        return Err(Error::str("a number has too many digits to be calculated with"));
    }
    Ok(Value::new(Val::Num(op.run(a, b)), 0))
}

impl Add for Value {
    type Output = ValR<Self>;

    fn add(self, other: Self) -> ValR<Self> {
        let depth = self.depth.max(other.depth);
        match (self.val, other.val) {
            (Val::Null, val) | (val, Val::Null) => Ok(Self::new(val, depth)),
            (Val::Num(a), Val::Num(b)) => numbers(a, Math::Add, b),
            (Val::TStr(a), Val::TStr(b)) => {
                burn_bytes(a.len() + b.len());
                let mut text = BytesMut::from(*a);
                text.extend_from_slice(&b);
                Ok(Self::new(Val::utf8_str(text.freeze()), 0))
            }
            (Val::Arr(mut a), Val::Arr(b)) => {
                burn_items(b.len(), 1);
                unshare_array(&mut a).extend(b.iter().cloned());
                Ok(Self::new(Val::Arr(a), depth))
            }
            (Val::Obj(mut a), Val::Obj(b)) => {
                burn_items(b.len(), ENTRY);
                unshare_object(&mut a).extend(b.iter().map(|(k, v)| (k.clone(), v.clone())));
                Ok(Self::new(Val::Obj(a), depth))
            }
            (a, b) => Err(cannot(a, Math::Add, b, depth)),
        }
    }
}

impl Sub for Value {
    type Output = ValR<Self>;

    fn sub(self, other: Self) -> ValR<Self> {
        let depth = self.depth.max(other.depth);
        match (self.val, other.val) {
            (Val::Num(a), Val::Num(b)) => numbers(a, Math::Sub, b),
            (Val::Arr(mut a), Val::Arr(b)) => {
                burn_items(b.len(), 1);
                let mut out: Vec<&Val> = b.iter().collect();
                out.sort_by(|a, b| compare(a, b));
                unshare_array(&mut a)
                    .retain(|item| out.binary_search_by(|other| compare(other, item)).is_err());
                Ok(Self::new(Val::Arr(a), depth))
            }
            (a, b) => Err(cannot(a, Math::Sub, b, depth)),
        }
    }
}

impl Mul for Value {
    type Output = ValR<Self>;

    fn mul(self, other: Self) -> ValR<Self> {
        let depth = self.depth.max(other.depth);
        match (self.val, other.val) {
            (Val::Num(a), Val::Num(b)) => numbers(a, Math::Mul, b),
            (Val::TStr(text), Val::Num(times @ (Num::Int(_) | Num::BigInt(_))))
            | (Val::Num(times @ (Num::Int(_) | Num::BigInt(_))), Val::TStr(text)) => {
                let many = if times < Num::Int(0) { 0 } else { isize::MAX };
                let times = times.as_isize().unwrap_or(many);
                let Some(times) = usize::try_from(times).ok().filter(|times| *times > 0) else {
                    return Ok(Self::new(Val::Null, 0));
                };
                burn_bytes(text.len().saturating_mul(times));
                Ok(Self::new(Val::utf8_str(text.repeat(times)), 0))
            }
            (Val::Obj(mut a), Val::Obj(b)) => {
                merge(&mut a, &b);
                Ok(Self::new(Val::Obj(a), depth))
            }
            (a, b) => Err(cannot(a, Math::Mul, b, depth)),
        }
    }
}

/// Merges objects, and the objects in them.
fn merge(a: &mut Rc<Map>, b: &Map) {
    burn_items(b.len(), ENTRY);
    let a = unshare_object(a);
    for (key, value) in b {
        match (a.get_mut(key), value) {
            (Some(Val::Obj(a)), Val::Obj(b)) => merge(a, b),
            (Some(a), b) => *a = b.clone(),
            (None, b) => {
                a.insert(key.clone(), b.clone());
            }
        }
    }
}

impl Div for Value {
    type Output = ValR<Self>;

    fn div(self, other: Self) -> ValR<Self> {
        let depth = self.depth.max(other.depth);
        match (self.val, other.val) {
            (Val::Num(a), Val::Num(b)) => numbers(a, Math::Div, b),
            (Val::TStr(text), Val::TStr(separator)) => Ok(split(&text, &separator)),
            (a, b) => Err(cannot(a, Math::Div, b, depth)),
        }
    }
}

/// The parts of a text; its characters where the separator is empty.
fn split(whole: &Bytes, separator: &Bytes) -> Value {
    burn_bytes(whole.len());
    let part = |part: &str| {
        burn(1);
        Val::utf8_str(whole.slice_ref(part.as_bytes()))
    };
    let parts = match (std::str::from_utf8(whole), std::str::from_utf8(separator)) {
        (Ok(""), _) => Vec::new(),
        (Ok(text), Ok("")) => text
            .char_indices()
            .filter_map(|(at, c)| text.get(at..at + c.len_utf8()))
            .map(part)
            .collect(),
        (Ok(text), Ok(separator)) => text.split(separator).map(part).collect(),
        // All texts are UTF-8.
        _ => Vec::new(),
    };
    Value::array(parts, 0)
}

impl Rem for Value {
    type Output = ValR<Self>;

    fn rem(self, other: Self) -> ValR<Self> {
        let depth = self.depth.max(other.depth);
        match (self.val, other.val) {
            (Val::Num(a), Val::Num(b)) if b != Num::Int(0) => {
                // Between floats it takes many steps.
                burn(10);
                numbers(a, Math::Rem, b)
            }
            (a, b) => Err(cannot(a, Math::Rem, b, depth)),
        }
    }
}

impl Neg for Value {
    type Output = ValR<Self>;

    fn neg(self) -> ValR<Self> {
        burn(1);
        match self.val {
            Val::Num(number) => Ok(Self::new(Val::Num(-number), 0)),
            _ => Err(Error::typ(self, "number")),
        }
    }
}

fn cannot(a: Val, op: Math, b: Val, depth: u16) -> Error<Value> {
    Error::math(Value::new(a, depth), op, Value::new(b, depth))
}
