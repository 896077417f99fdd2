//! A flow's text as a tree: what stands where, before it means anything.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

/// Line and column from 1; 0 when unknown.
pub(super) type Place = (u64, u64);

/// The text's shape, with the place of everything.
#[derive(Debug)]
pub(super) struct Tree(Box<Spanned<Node>>);

#[derive(Debug)]
pub(super) enum Node {
    Leaf(Value),
    List(Vec<Tree>),
    Map(Vec<(Key, Tree)>),
}

pub(super) type Key = Spanned<String>;

impl Tree {
    /// The tree of a text that is YAML; of a key that stands twice the first counts.
    pub(super) fn of(text: &str) -> Option<Self> {
        let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::FirstWins };
        serde_saphyr::from_str_with_options(text, options).ok()
    }

    pub(super) fn node(&self) -> &Node {
        &self.0.value
    }

    pub(super) fn place(&self) -> Place {
        place_of(&self.0.referenced)
    }

    /// Where a path leads, `steps[2].needs[0]`: its nearest enclosing part when it is not written itself.
    pub(super) fn find(&self, path: &str) -> Place {
        let (mut here, mut place) = (self, self.place());
        for name in path.split(['.', '[', ']']).filter(|part| !part.is_empty()) {
            let next = match here.node() {
                Node::Map(fields) => fields.iter().find(|(key, _)| key.value == name).map(|(key, value)| {
                    // A block stands at its key, a value at itself.
                    let leaf = matches!(value.node(), Node::Leaf(_));
                    (if leaf { value.place() } else { place_of(&key.referenced) }, value)
                }),
                Node::List(items) => {
                    name.parse::<usize>().ok().and_then(|at| items.get(at)).map(|item| (item.place(), item))
                }
                Node::Leaf(_) => None,
            };
            let Some((at, value)) = next else { break };
            (place, here) = (at, value);
        }
        place
    }
}

pub(super) fn place_of(location: &Location) -> Place {
    (location.line(), location.column())
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Spanned::deserialize(d).map(|spanned| Self(Box::new(spanned)))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Shape)
    }
}

struct Shape;

macro_rules! leaves {
    ($($visit:ident: $type:ty),+) => {
        $(fn $visit<E>(self, value: $type) -> Result<Node, E> { Ok(Node::Leaf(value.into())) })+
    };
}

impl<'de> Visitor<'de> for Shape {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    leaves!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        Node::deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }
}
