//! A flow's text as a tree: what stands where, before it means anything.

use std::{collections::BTreeSet, fmt};

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
    Map {
        fields: Vec<(Key, Tree)>,
        /// Keys that stand in `fields` already.
        again: Vec<Key>,
    },
}

pub(super) type Key = Spanned<String>;

/// A key that stands in its map for the second time or later.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub path: String,
    pub name: String,
    pub place: Place,
    pub first: Place,
}

impl Tree {
    /// The tree of a text that is YAML; of a key that stands twice the first counts.
    ///
    /// # Errors
    /// What is wrong with the syntax.
    pub(super) fn of(text: &str) -> Result<Self, serde_saphyr::Error> {
        // The one policy under which every key is seen; which of them counts is decided here.
        let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
        serde_saphyr::from_str_with_options(text, options)
    }

    /// Every key that stands in its map already, wherever that is; once each, however often an alias repeats it.
    pub(super) fn again(&self) -> Vec<Again> {
        let mut found = Vec::new();
        self.gather_again("", &mut found);
        found.sort_by_key(|again| again.place);
        found.dedup_by_key(|again| again.place);
        found
    }

    fn gather_again(&self, path: &str, found: &mut Vec<Again>) {
        match self.node() {
            Node::Leaf(_) => {}
            Node::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    item.gather_again(&format!("{path}[{at}]"), found);
                }
            }
            Node::Map { fields, again } => {
                let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                for key in again {
                    let first = fields.iter().find(|(first, _)| first.value == key.value);
                    found.push(Again {
                        path: below(&key.value),
                        name: key.value.clone(),
                        place: place_of(&key.defined),
                        first: first.map_or((0, 0), |(first, _)| place_of(&first.defined)),
                    });
                }
                for (key, value) in fields {
                    value.gather_again(&below(&key.value), found);
                }
            }
        }
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
                Node::Map { fields, .. } => fields.iter().find(|(key, _)| key.value == name).map(|(key, value)| {
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
        let (mut fields, mut again) = (Vec::<(Key, Tree)>::new(), Vec::new());
        let mut seen = BTreeSet::new();
        while let Some((key, value)) = map.next_entry::<Key, Tree>()? {
            if seen.insert(key.value.clone()) {
                fields.push((key, value));
            } else {
                again.push(key);
            }
        }
        Ok(Node::Map { fields, again })
    }
}
