//! A page as a list of steps.
//!
//! In ```` ```console ```` blocks a line that begins with `$ ` is a command; a backslash at its end or a here-document continues it; the
//! lines after it are what it prints. Two comments, which readers don't see, say more: `<!-- mesh only -->` before a block keeps it out
//! of plain runs, and `<!-- browser: WORDS -->` is something that the text asks the reader to do in a browser.

use anyhow::{Context as _, Result, bail};

/// Plain runs leave out commands with this in them: the label that asks for injection.
const INJECTION: &str = "istio-injection=";

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A command.
    Run {
        /// Line of the page.
        line: usize,
        /// For the shell; may have several lines.
        command: String,
        /// What the page says that it prints.
        prints: Vec<String>,
    },
    /// Something in a browser.
    Browse {
        /// Line of the page.
        line: usize,
        /// Name of the script, and its arguments.
        words: Vec<String>,
    },
}

/// Steps of a page, for one kind of run.
pub fn steps(page: &str, injected: bool) -> Result<Vec<Step>> {
    let mut lines = page.lines().zip(1..).peekable();
    let (mut steps, mut mesh_only) = (Vec::new(), false);
    while let Some((text, line)) = lines.next() {
        if text == "<!-- mesh only -->" {
            mesh_only = true;
        } else if let Some(rest) = text.strip_prefix("<!-- browser: ") {
            let words =
                rest.strip_suffix(" -->").with_context(|| format!("line {line}: no end of the comment"))?;
            if injected || !std::mem::take(&mut mesh_only) {
                steps.push(Step::Browse { line, words: words.split(' ').map(str::to_owned).collect() });
            }
        } else if text == "```console" {
            let mut block = Vec::new();
            loop {
                let (text, line) =
                    lines.next().with_context(|| format!("line {line}: the block has no end"))?;
                if text == "```" {
                    break;
                }
                block.push((text, line));
            }
            if injected || !std::mem::take(&mut mesh_only) {
                steps.extend(commands(&block)?);
            }
            mesh_only = false;
        } else if mesh_only && !text.is_empty() {
            bail!("line {line}: `mesh only` must stand right before a block");
        }
    }
    if !injected {
        steps.retain(|step| !matches!(step, Step::Run { command, .. } if command.contains(INJECTION)));
    }
    Ok(steps)
}

/// Namespaces that these steps make.
pub fn namespaces(steps: &[Step]) -> Vec<String> {
    let made = |step: &Step| match step {
        Step::Run { command, .. } => command.strip_prefix("kubectl create namespace ").map(str::to_owned),
        Step::Browse { .. } => None,
    };
    steps.iter().filter_map(made).collect()
}

/// Commands of one block.
fn commands(block: &[(&str, usize)]) -> Result<Vec<Step>> {
    let mut lines = block.iter().copied();
    let mut found: Vec<Step> = Vec::new();
    while let Some((text, line)) = lines.next() {
        let Some(first) = text.strip_prefix("$ ") else {
            let Some(Step::Run { prints, .. }) = found.last_mut() else {
                bail!("line {line}: a block begins with a command");
            };
            prints.push(text.to_owned());
            continue;
        };
        let mut command = first.to_owned();
        let mut last = first;
        while let Some(next) = last.ends_with('\\').then(|| lines.next()).flatten() {
            last = next.0;
            command = format!("{command}\n{last}");
        }
        if let Some(end) = here_document(&command) {
            loop {
                let (text, _) =
                    lines.next().with_context(|| format!("line {line}: the here-document has no {end}"))?;
                command = format!("{command}\n{text}");
                if text == end {
                    break;
                }
            }
        }
        found.push(Step::Run { line, command, prints: Vec::new() });
    }
    Ok(found)
}

/// The word that ends a here-document which begins in this command.
fn here_document(command: &str) -> Option<String> {
    let (_, word) = command.split_once("<<")?;
    let word = word.trim_start_matches(['\'', '"']);
    let end = word.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(word.len());
    Some(word[..end].to_owned()).filter(|word| !word.is_empty())
}

/// Run by the suite `tidy`: no suite runs the tests of this library.
pub mod checks {
    use super::*;

    const PAGE: &str = "\
# A page

```yaml
$ not: a command
```

```console
$ kubectl create namespace walk-a
namespace/walk-a created
$ kubectl label namespace walk-a istio-injection=enabled
namespace/walk-a labeled
```

<!-- mesh only -->
```console
$ inside
```

<!-- browser: look twice -->

```console
$ apply - <<'EOF' \\
  | cat
a: $ b

EOF
made
…
$ end
```
";

    fn run(line: usize, command: &str, prints: &[&str]) -> Step {
        Step::Run {
            line,
            command: command.to_owned(),
            prints: prints.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    /// A check.
    pub fn a_page_is_read_for_both_kinds_of_run() {
        let create = run(8, "kubectl create namespace walk-a", &["namespace/walk-a created"]);
        let label =
            run(10, "kubectl label namespace walk-a istio-injection=enabled", &["namespace/walk-a labeled"]);
        let inside = run(16, "inside", &[]);
        let browse = Step::Browse { line: 19, words: vec!["look".into(), "twice".into()] };
        let apply = run(22, "apply - <<'EOF' \\\n  | cat\na: $ b\n\nEOF", &["made", "…"]);
        let end = run(29, "end", &[]);
        let plain = steps(PAGE, false).expect("a page");
        assert_eq!(plain, [create.clone(), browse.clone(), apply.clone(), end.clone()]);
        assert_eq!(steps(PAGE, true).expect("a page"), [create, label, inside, browse, apply, end]);
        assert_eq!(namespaces(&plain), ["walk-a"]);
    }

    /// A check.
    pub fn what_is_no_page_is_refused_with_its_line() {
        for (page, complaint) in [
            ("```console\n$ a\n", "line 1: the block has no end"),
            ("```console\nprinted\n```\n", "line 2: a block begins with a command"),
            ("```console\n$ a <<EOF\nb\n```\n", "line 2: the here-document has no EOF"),
            ("<!-- mesh only -->\ntext\n", "line 2: `mesh only` must stand right before a block"),
            ("<!-- browser: a\n", "line 1: no end of the comment"),
        ] {
            let refused = steps(page, true).expect_err(page);
            assert_eq!(refused.to_string(), complaint);
        }
    }
}
