//! Builds the search index of the site from the rendered pages: which word stands on which page.

use std::collections::{BTreeMap, BTreeSet};

use tm_guest::prelude::*;

const ARTIFACT: &str = "search-index.json";
/// Shorter words find everything, longer ones are no words.
const WORD_CHARS: std::ops::RangeInclusive<usize> = 3..=40;

#[payload]
struct In {
    pages: Vec<Page>,
}

/// What this step takes from the output of `render`.
#[payload]
#[derive(Clone)]
struct Page {
    html: String,
    title: String,
}

/// The artefact: pages, and for each word the positions in `pages` where it stands.
#[payload]
struct Index {
    pages: Vec<Page>,
    words: BTreeMap<String, Vec<usize>>,
}

#[payload]
struct Out {
    artifact: String,
    pages: usize,
    words: usize,
}

#[step]
fn index(_ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
    let mut index = Index { pages: Vec::new(), words: BTreeMap::new() };
    let total = input.pages.len();
    for (at, page) in input.pages.into_iter().enumerate() {
        if cancel::requested() {
            return Err(StepError::retryable("STOPPED", "the host asked the attempt to end"));
        }
        let html = artifacts::read("render", &page.html)?;
        for word in words(&main_text(&String::from_utf8_lossy(&html))) {
            index.words.entry(word).or_default().push(at);
        }
        index.pages.push(page);
        progress::report((at * 100 / total) as u8, None);
    }
    let text = to_json(&index)?;
    artifacts::write(ARTIFACT, text)?;
    Ok(Json(Out { artifact: ARTIFACT.to_owned(), pages: total, words: index.words.len() }))
}

fn to_json(index: &Index) -> Result<Vec<u8>, StepError> {
    tm_guest::serde_json::to_vec(index).map_err(|why| StepError::fatal("INDEX_NOT_JSON", why.to_string()))
}

/// The text between the tags of `<main>`. The pages are our own, so tags are well formed but for raw HTML in a page,
/// where a wrong guess costs a word in the index.
fn main_text(html: &str) -> String {
    let body = html.split_once("<main>").map_or(html, |(_, rest)| rest);
    let body = body.rsplit_once("</main>").map_or(body, |(body, _)| body);
    let mut text = String::with_capacity(body.len());
    let mut in_tag = false;
    for c in body.chars() {
        match c {
            '<' => in_tag = true,
            '>' if in_tag => {
                in_tag = false;
                text.push(' ');
            }
            c if !in_tag => text.push(c),
            _ => {}
        }
    }
    for (entity, plain) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")] {
        if text.contains(entity) {
            text = text.replace(entity, plain);
        }
    }
    text
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| WORD_CHARS.contains(&word.chars().count()))
        .map(str::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_guest::testing;

    #[test]
    fn a_word_leads_to_every_page_that_has_it() {
        testing::provide("render", "a.html", "<nav>menu</nav><main><h1 id=\"x\">Fuel &amp; epochs</h1></main>");
        testing::provide("render", "b.html", "<main><p>fuel_limit of<br>FUEL</p></main>");
        let pages = json!([{"html": "a.html", "title": "A"}, {"html": "b.html", "title": "B"}]);
        let output = testing::run(index, &Context::test(), json!({"pages": pages})).unwrap();
        assert_eq!(output, json!({"artifact": "search-index.json", "pages": 2, "words": 3}));
        let index: Value = tm_guest::serde_json::from_slice(&testing::artifact(ARTIFACT).unwrap()).unwrap();
        assert_eq!(index["words"], json!({"epochs": [0], "fuel": [0, 1], "fuel_limit": [1]}));
    }

    #[test]
    fn a_page_that_was_not_rendered_fails_by_name() {
        let pages = json!([{"html": "a.html", "title": "A"}]);
        let error = testing::run(index, &Context::test(), json!({"pages": pages})).unwrap_err();
        assert_eq!(error.code(), "ARTIFACT_NOT_FOUND");
        assert!(error.message().contains("a.html"));
    }
}
