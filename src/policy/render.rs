//! A diagnostic as text for people, in the shape of rustc's errors (cli.md 11).

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::policy::{Diagnostic, Severity, SourceFile, load::tree::without_bom};

const WIDTH: usize = 80;

/// Renders `diagnostic`, with the line of `source` it is about when that is its file. Without a newline at the end.
/// Colours are ANSI sequences.
pub fn render(diagnostic: &Diagnostic, source: Option<&SourceFile>, colour: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Info => Level::INFO,
    };
    let title = level.primary_title(&diagnostic.message).id(diagnostic.code);
    let mut group = Group::with_title(title);
    group = locate(group, diagnostic, source);
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help));
    }
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    renderer.term_width(WIDTH).render(&[group])
}

fn locate<'a>(
    group: Group<'a>,
    diagnostic: &'a Diagnostic,
    source: Option<&'a SourceFile>,
) -> Group<'a> {
    let Some(place) = &diagnostic.place else {
        return group;
    };
    let index = (place.line as usize).saturating_sub(1);
    let line = source
        .filter(|source| source.name == place.file)
        .and_then(|source| without_bom(&source.text).lines().nth(index));
    let Some(line) = line else {
        let origin = Origin::path(&*place.file)
            .line(place.line as usize)
            .char_column(place.column as usize);
        return group.element(origin);
    };
    let before = (place.column as usize).saturating_sub(1);
    let start = byte_of(line, before);
    let end = byte_of(line, before.saturating_add(diagnostic.length.max(1)));
    let marks = AnnotationKind::Primary
        .span(start..end)
        .label(diagnostic.label.as_deref());
    let snippet = Snippet::source(line)
        .path(&*place.file)
        .line_start(place.line as usize)
        .annotation(marks);
    group.element(snippet)
}

/// Where the character with this number begins; the end of the line when it has fewer.
fn byte_of(line: &str, character: usize) -> usize {
    line.char_indices()
        .nth(character)
        .map_or(line.len(), |(byte, _)| byte)
}
