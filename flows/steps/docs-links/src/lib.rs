//! Finds the links of a site that lead nowhere: to a page, a file or an anchor that does not exist.
//!
//! Links to other hosts and links that leave the folder are counted, not checked: from here they cannot be.

mod target;

use std::collections::{BTreeMap, BTreeSet};

use tm_guest::prelude::*;

use target::Target;

const ARTIFACT: &str = "broken-links.json";

#[payload]
struct In {
    /// Files of the folder that are not pages.
    #[serde(default)]
    files: Vec<String>,
    pages: Vec<Page>,
}

/// What this step takes from the output of `render`.
#[payload]
struct Page {
    path: String,
    links: Vec<String>,
    headings: Vec<Heading>,
    #[serde(default)]
    anchors: Vec<String>,
}

#[payload]
struct Heading {
    anchor: String,
}

#[payload]
#[derive(Debug, PartialEq)]
struct Broken {
    page: String,
    link: String,
    reason: String,
}

#[payload]
struct Out {
    artifact: String,
    /// Links that were followed.
    checked: usize,
    /// Links to other hosts.
    external: usize,
    /// Links that leave the folder.
    outside: usize,
    broken: Vec<Broken>,
}

#[step]
fn links(_ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
    let site = Site::new(&input);
    let mut out = Out { artifact: ARTIFACT.to_owned(), checked: 0, external: 0, outside: 0, broken: Vec::new() };
    for page in &input.pages {
        for link in &page.links {
            match Target::of(link, &page.path) {
                Target::External => out.external += 1,
                Target::Outside => out.outside += 1,
                Target::Inside { path, anchor } => {
                    out.checked += 1;
                    if let Some(reason) = site.fault(&path, anchor.as_deref()) {
                        out.broken.push(Broken {
                            page: page.path.clone(),
                            link: link.clone(),
                            reason: reason.to_owned(),
                        });
                    }
                }
            }
        }
    }
    if !out.broken.is_empty() {
        log::warn(format!("{} of {} links lead nowhere", out.broken.len(), out.checked));
    }
    let report = tm_guest::serde_json::to_vec_pretty(&out)
        .map_err(|why| StepError::fatal("REPORT_NOT_JSON", why.to_string()))?;
    artifacts::write(ARTIFACT, report)?;
    Ok(Json(out))
}

/// All that a link can lead to.
struct Site<'a> {
    anchors: BTreeMap<&'a str, BTreeSet<&'a str>>,
    files: BTreeSet<&'a str>,
    folders: BTreeSet<&'a str>,
}

impl<'a> Site<'a> {
    fn new(input: &'a In) -> Site<'a> {
        let anchors = input.pages.iter().map(|page| {
            let headings = page.headings.iter().map(|h| h.anchor.as_str());
            (page.path.as_str(), headings.chain(page.anchors.iter().map(String::as_str)).collect())
        });
        let files: BTreeSet<_> = input.files.iter().map(String::as_str).collect();
        let paths = input.pages.iter().map(|page| page.path.as_str()).chain(files.iter().copied());
        let folders = paths.flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at])).chain([""]).collect();
        Site { anchors: anchors.collect(), files, folders }
    }

    /// Why a link to `path` and `anchor` leads nowhere, if it does.
    fn fault(&self, path: &str, anchor: Option<&str>) -> Option<&'static str> {
        if let Some(anchors) = self.anchors.get(path) {
            return match anchor {
                None | Some("" | "top") => None,
                Some(anchor) if anchors.contains(anchor) => None,
                Some(_) => Some("no such anchor"),
            };
        }
        match path {
            _ if self.files.contains(path) || self.folders.contains(path) => None,
            _ if path.ends_with(".md") => Some("no such page"),
            _ => Some("no such file"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_guest::testing;

    fn page(path: &str, links: &[&str], headings: &[&str]) -> Value {
        let headings: Vec<_> = headings.iter().map(|a| json!({"level": 1, "text": a, "anchor": a})).collect();
        json!({"path": path, "title": path, "links": links, "headings": headings, "anchors": ["raw"], "words": 1})
    }

    fn check(links_of_a: &[&str]) -> Value {
        let pages = json!([page("guide/a.md", links_of_a, &["start"]), page("b.md", &[], &["use", "größe"])]);
        let input = json!({"pages": pages, "files": ["pics/one.png", "spaced name.txt"]});
        testing::run(links, &Context::test(), input).unwrap()
    }

    #[test]
    fn links_that_resolve_are_not_reported() {
        let good = [
            "../b.md",
            "../b.md#use",
            "#start",
            "#raw",
            "#",
            "a.md#top",
            "/b.md",
            "../pics/one.png",
            "../pics/",
            "../pics",
            "../b.md?x=1#use",
            "./../b.md",
            "../spaced%20name.txt",
            "../b.md#gr%C3%B6%C3%9Fe",
            "/",
            "..",
        ];
        let out = check(&good);
        assert_eq!(out["broken"], json!([]));
        assert_eq!(out["checked"], good.len());
    }

    #[test]
    fn links_that_lead_nowhere_are_reported_with_the_reason() {
        let out = check(&["b.md", "../b.md#nope", "#nope", "../pics/two.png", "/guide/b.md", "../b.html"]);
        let reasons: Vec<_> = out["broken"].as_array().unwrap().iter().map(|b| b["reason"].as_str().unwrap()).collect();
        assert_eq!(
            reasons,
            ["no such page", "no such anchor", "no such anchor", "no such file", "no such page", "no such file"]
        );
        assert_eq!(out["broken"][0], json!({"page": "guide/a.md", "link": "b.md", "reason": "no such page"}));
    }

    #[test]
    fn links_to_elsewhere_are_counted_and_not_checked() {
        let out = check(&["https://example.org/x.md", "//example.org", "mailto:a@example.org", "../../README.md"]);
        assert_eq!((&out["checked"], &out["external"], &out["outside"]), (&json!(0), &json!(3), &json!(1)));
    }

    #[test]
    fn the_report_is_an_artefact() {
        check(&["b.md"]);
        let report: Value = tm_guest::serde_json::from_slice(&testing::artifact(ARTIFACT).unwrap()).unwrap();
        assert_eq!(report["broken"][0]["link"], "b.md");
    }
}
