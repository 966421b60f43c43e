//! Changes of a state, as JSON.

use arbitrary::Arbitrary;
use serde_json::Value;

/// A change of one value, which is found by its number.
#[derive(Arbitrary, Debug)]
pub(super) struct Edit {
    place: u16,
    change: Change,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Number(u64),
    Small(u8),
    Bit(u8),
    Not,
    Null,
    /// Takes out an element.
    Remove(u8),
    /// Repeats one.
    Repeat(u8),
    /// Another hexadecimal digit in a text.
    Digit {
        at: u16,
        digit: u8,
    },
    /// A text of another length.
    Length(u16),
    /// The same as another value.
    Copy(u16),
}

impl Edit {
    pub(super) fn apply(&self, json: &mut Value) {
        let count = count(json);
        let other = match self.change {
            Change::Copy(other) => find(json, &mut (usize::from(other) % count)).cloned(),
            _ => None,
        };
        let Some(value) = find(json, &mut (usize::from(self.place) % count)) else {
            return;
        };
        match other {
            Some(other) => *value = other,
            None => self.change.apply(value),
        }
    }
}

impl Change {
    fn apply(&self, value: &mut Value) {
        match (self, value) {
            (Self::Number(number), value) => *value = (*number).into(),
            (Self::Small(number), value) => *value = (*number).into(),
            (Self::Null, value) => *value = Value::Null,
            (Self::Bit(bit), Value::Number(number)) => {
                *number = (number.as_u64().unwrap_or(0) ^ 1 << (bit % 64)).into();
            }
            (Self::Not, Value::Bool(value)) => *value = !*value,
            (Self::Remove(index), Value::Array(list)) if !list.is_empty() => {
                list.remove(usize::from(*index) % list.len());
            }
            (Self::Remove(index), Value::Object(fields)) if !fields.is_empty() => {
                let index = usize::from(*index) % fields.len();
                if let Some(name) = fields.keys().nth(index).cloned() {
                    fields.remove(&name);
                }
            }
            (Self::Repeat(index), Value::Array(list)) if !list.is_empty() => {
                let again = list.get(usize::from(*index) % list.len()).cloned();
                list.extend(again);
            }
            (Self::Digit { at, digit }, Value::String(text)) if !text.is_empty() => {
                let at = usize::from(*at) % text.len();
                if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                    text.replace_range(at..=at, &format!("{:x}", digit & 0xf));
                }
            }
            (Self::Length(length), Value::String(text)) => {
                *text = text.chars().cycle().take(usize::from(*length)).collect();
            }
            _ => {}
        }
    }
}

/// How many values there are in `value`, itself included.
fn count(value: &Value) -> usize {
    let within: usize = match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    };
    1 + within
}

/// Value number `index` of them.
fn find<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| find(value, index)),
        Value::Object(fields) => fields.values_mut().find_map(|value| find(value, index)),
        _ => None,
    }
}
