//! The HTML page: a template filled with the styles, uPlot, our script, and the runs as JSON. All text from users goes
//! through JSON and the script's `textContent`, never through HTML; only the title is escaped here.

use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Value, json};

use super::Run;
use crate::disk;
use crate::run_dir::RunDir;
use crate::url::encode_path;

/// Number of clips that are listed.
const MOST_CLIPS: usize = 2000;

/// Characters of a caption that are kept.
const LONGEST_CAPTION: usize = 1000;

const TEMPLATE: &str = include_str!("page/page.html");

const STYLES: [&str; 2] = [include_str!("vendor/uPlot.min.css"), include_str!("page/page.css")];

const SCRIPTS: [&str; 5] = [
    include_str!("page/frame.js"),
    include_str!("page/charts.js"),
    include_str!("page/videos.js"),
    include_str!("page/lists.js"),
    include_str!("page/start.js"),
];

/// Writes the page of these runs into a file, atomically.
pub fn write(runs: &[Run], file: &Path) -> anyhow::Result<()> {
    let file = std::path::absolute(file).with_context(|| file.display().to_string())?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    // Links are relative to the page's real path.
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    Ok(disk::write_whole(&file, html(runs, &folder)?.as_bytes())?)
}

/// Returns the page of these runs, with links relative to an absolute folder.
pub fn html(runs: &[Run], folder: &Path) -> anyhow::Result<String> {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let data = json!({
        "vtrain": env!("CARGO_PKG_VERSION"),
        "written": now,
        "runs": runs.iter().map(|run| facts(run, folder)).collect::<anyhow::Result<Vec<_>>>()?,
    });
    // In a script element only `<` can end the data.
    let data = data.to_string().replace('<', "\\u003c");
    let (styles, scripts) = (STYLES.join("\n"), SCRIPTS.join("\n"));
    Ok(filled(
        TEMPLATE,
        &[
            ("{title}", &text(&names.join(" · "))),
            ("{styles}", &styles),
            ("{data}", &data),
            ("{uplot}", include_str!("vendor/uPlot.iife.min.js")),
            ("{scripts}", &scripts),
        ],
    ))
}

/// Returns a run's data for the script.
fn facts(run: &Run, folder: &Path) -> anyhow::Result<Value> {
    let dir = RunDir::new(&run.folder);
    let picture = |name: &String| Some(encode_path(&dir.relative(&dir.report().join(name))?));
    let clips = run.clips.as_ref().map(|clips| {
        let listed = clips.iter().take(MOST_CLIPS).map(|clip| {
            json!({
                "name": clip.name,
                "caption": shortened(&clip.caption),
                "bucket": clip.bucket,
                "repeats": clip.repeats,
                "fps": clip.fps,
                "picture": clip.thumbnail.as_ref().and_then(picture),
            })
        });
        json!({"total": clips.len(), "listed": listed.collect::<Vec<_>>()})
    });
    Ok(json!({
        "name": run.name,
        "folder": run.folder.to_string_lossy(),
        "base": link(folder, &run.folder),
        "step": run.step(),
        "steps": run.steps,
        "complete": run.is_complete(),
        "curves": serde_json::to_value(&run.curves)?,
        "grid": serde_json::to_value(&run.grid)?,
        "settings": serde_json::to_value(&run.settings)?,
        "environment": serde_json::to_value(&run.environment)?,
        "clips": clips,
    }))
}

fn shortened(caption: &str) -> String {
    match caption.char_indices().nth(LONGEST_CAPTION) {
        Some((end, _)) => format!("{}…", &caption[..end]),
        None => caption.to_string(),
    }
}

/// Fills the template's marks in one pass: inserted text is not searched again.
fn filled(template: &str, parts: &[(&str, &str)]) -> String {
    let mut page = String::with_capacity(template.len() + parts.iter().map(|part| part.1.len()).sum::<usize>());
    let mut rest = template;
    let next = |rest: &str| {
        let found = parts.iter().filter_map(|part| Some((rest.find(part.0)?, *part)));
        found.min_by_key(|(at, _)| *at)
    };
    while let Some((at, (mark, text))) = next(rest) {
        page.push_str(&rest[..at]);
        page.push_str(text);
        rest = &rest[at + mark.len()..];
    }
    page + rest
}

/// Escapes text for HTML.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns the relative link between two absolute folders, ending in `/`; empty if they are equal.
fn link(from: &Path, to: &Path) -> String {
    let (from, to): (Vec<Component>, Vec<Component>) = (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[common..].iter().map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to[common..].iter().copied()).collect();
    match way.to_string_lossy().replace('\\', "/") {
        way if way.is_empty() => way,
        way => encode_path(&way) + "/",
    }
}
