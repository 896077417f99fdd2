//! Puts the site together, as artefacts: every page with its navigation, a table of contents, the search index, the
//! report of broken links, the style sheet, and the other files of the folder.

mod parts;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use tm_guest::artifacts::CHUNK_BYTES;
use tm_guest::prelude::*;

use parts::Page;

/// Where the flow mounts the folder.
const ROOT: &str = "/docs";
/// Names that the site needs for itself; a page or file of the same name gives way to them, with a warning.
const OWN_NAMES: [&str; 3] = ["site.css", "search-index.json", "broken-links.json"];

#[payload]
struct In {
    /// Files of the folder that are not pages.
    #[serde(default)]
    files: Vec<String>,
    pages: Vec<Page>,
    broken: Vec<Value>,
}

#[payload]
struct Out {
    pages: usize,
    files: usize,
    /// Of all artefacts together.
    bytes: u64,
    broken: usize,
    /// Where to begin reading.
    contents: String,
}

#[step]
fn assemble(_ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
    let mut taken: BTreeSet<String> = OWN_NAMES.map(str::to_owned).into();
    taken.extend(input.pages.iter().map(|page| page.html.clone()));
    let contents = free_name(&taken);
    taken.insert(contents.clone());

    let mut bytes = copy_pages(&input.pages, &contents)?;
    bytes += put(&contents, parts::contents(&input.pages, input.broken.len()))?;
    bytes += put("site.css", parts::STYLE)?;
    for (step, name) in [("index", "search-index.json"), ("links", "broken-links.json")] {
        bytes += put(name, artifacts::read(step, name)?)?;
    }
    let mut files = 0;
    for file in &input.files {
        if taken.insert(file.clone()) {
            bytes += copy_file(file)?;
            files += 1;
        } else {
            log::warn(format!("{file}: left out, the site has a page of that name"));
        }
    }
    Ok(Json(Out { pages: input.pages.len(), files, bytes, broken: input.broken.len(), contents }))
}

/// The table of contents is `index.html`, unless a page is.
fn free_name(taken: &BTreeSet<String>) -> String {
    let names = ["index.html".to_owned(), "contents.html".to_owned()];
    let mut names = names.into_iter().chain((1..).map(|n| format!("contents-{n}.html")));
    names.find(|name| !taken.contains(name)).expect("the names never end")
}

fn copy_pages(pages: &[Page], contents: &str) -> Result<u64, StepError> {
    let mut bytes = 0;
    for (at, page) in pages.iter().enumerate() {
        if cancel::requested() {
            return Err(StepError::retryable("STOPPED", "the host asked the attempt to end"));
        }
        let html = artifacts::read("render", &page.html)?;
        let neighbour = |at: Option<usize>| at.and_then(|at| pages.get(at));
        let navigation = parts::navigation(page, contents, neighbour(at.checked_sub(1)), neighbour(Some(at + 1)));
        bytes += put(&page.html, parts::fill(&String::from_utf8_lossy(&html), &navigation))?;
        progress::report((at * 100 / pages.len()) as u8, Some("pages"));
    }
    Ok(bytes)
}

fn put(name: &str, content: impl AsRef<[u8]>) -> Result<u64, StepError> {
    artifacts::write(name, content.as_ref())?;
    Ok(content.as_ref().len() as u64)
}

/// Copies a file of the folder piece by piece, so that its size does not matter for the step's memory.
fn copy_file(name: &str) -> Result<u64, StepError> {
    let failed = |why: std::io::Error| StepError::retryable("FILE_UNREADABLE", format!("{name}: {why}"));
    let mut file = File::open(Path::new(ROOT).join(name)).map_err(failed)?;
    let mut artifact = artifacts::create(name)?;
    let (mut buffer, mut bytes) = (vec![0; CHUNK_BYTES], 0);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            read => {
                artifact.write(&buffer[..read])?;
                bytes += read as u64;
            }
        }
    }
    artifact.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_guest::testing;

    fn site(names: &[&str]) -> Result<Value, StepError> {
        testing::provide("index", "search-index.json", "{}");
        testing::provide("links", "broken-links.json", "{}");
        for name in names {
            testing::provide("render", name, "<body>\n<!--navigation-->\n<main>text</main></body>");
        }
        let pages: Vec<_> = names.iter().map(|n| json!({"html": n, "title": format!("Title of {n}")})).collect();
        let broken = json!([{"page": "a.md", "link": "x.md", "reason": "no such page"}]);
        testing::run(assemble, &Context::test(), json!({"pages": pages, "broken": broken}))
    }

    #[test]
    fn the_site_has_its_pages_contents_index_report_and_style() {
        let out = site(&["a.html", "guide/b.html"]).unwrap();
        assert_eq!((&out["pages"], &out["broken"], &out["contents"]), (&json!(2), &json!(1), &json!("index.html")));
        let names = ["a.html", "broken-links.json", "guide/b.html", "index.html", "search-index.json", "site.css"];
        assert_eq!(testing::artifact_names(), names);
        let size: usize = names.iter().map(|name| testing::artifact(name).unwrap().len()).sum();
        assert_eq!(out["bytes"], size);
        let page = String::from_utf8(testing::artifact("guide/b.html").unwrap()).unwrap();
        assert!(page.contains("href=\"../index.html\"") && page.contains("href=\"../a.html\""), "{page}");
    }

    #[test]
    fn a_page_named_index_keeps_its_name() {
        assert_eq!(site(&["index.html", "a.html"]).unwrap()["contents"], "contents.html");
    }

    #[test]
    fn a_missing_page_fails_by_name() {
        testing::provide("index", "search-index.json", "{}");
        let input = json!({"pages": [{"html": "gone.html", "title": "x"}], "broken": []});
        let error = testing::run(assemble, &Context::test(), input).unwrap_err();
        assert!(error.message().contains("gone.html"), "{error}");
    }
}
