//! What the files of a folder say, and what changed since they were last read.
//!
//! A file that can't be read or is no YAML keeps the last good version of all its resources. Where two documents name the same
//! resource, the first by path and position holds and the others are refused. Reading is cheap where nothing changed: a file is
//! read again only if its size, time or identity moved, or if it is so young that its time may not tell.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hashbrown::{HashMap, HashSet};

use super::object::{Document, FirstSeen, Reader};
use super::selection::Selection;
use super::yaml;
use crate::model::{Coverage, Report, ResourceKey, SecurityPolicy, Severity};
use crate::store::check::Resource;
use crate::store::writer::now;
use crate::store::{Outcome, Update};

/// Files larger than this are refused.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 16;
/// A file younger than this is read again even if it looks the same.
const YOUNG: Duration = Duration::from_secs(2);

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Resources that came, went or changed.
    pub updates: Vec<Update>,
    /// Everything that there is to say about the folder now.
    pub reports: Vec<Report>,
    /// Something looked half-written: scan again soon.
    pub again: bool,
}

/// A folder of YAML.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    cluster_domain: Arc<str>,
    files: BTreeMap<Arc<PathBuf>, File>,
    /// The document that holds for each resource.
    current: BTreeMap<ResourceKey, Arc<Document>>,
    /// What there was to say after the last scan.
    reports: Vec<Report>,
    ages: Ages,
}

#[derive(Debug, Default)]
struct File {
    mark: Option<Mark>,
    content: Vec<u8>,
    documents: Vec<Arc<Document>>,
    /// Why it could not be read; its documents are older than this.
    failure: Option<Report>,
    /// It was empty when last looked at, although it had resources.
    emptied: bool,
}

/// Tells whether a file may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    inode: u64,
    device: u64,
    size: u64,
    modified: SystemTime,
    young: bool,
    regular: bool,
}

#[derive(Debug)]
struct Ages {
    seen: HashMap<ResourceKey, i64>,
    now: i64,
}

impl FirstSeen for Ages {
    fn first_seen(&mut self, key: &ResourceKey) -> i64 {
        *self.seen.entry(key.clone()).or_insert(self.now)
    }
}

impl Folder {
    /// A folder that nothing was read of yet.
    pub fn new(root: impl Into<PathBuf>, cluster_domain: Arc<str>) -> Self {
        let ages = Ages { seen: HashMap::new(), now: 0 };
        Self {
            root: root.into(),
            cluster_domain,
            files: BTreeMap::new(),
            current: BTreeMap::new(),
            reports: Vec::new(),
            ages,
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads what changed. Fails only if the folder itself can't be listed; everything then stays as it was.
    pub fn scan(&mut self) -> io::Result<Scan> {
        let mut found = BTreeMap::new();
        let mut visited = HashSet::new();
        list(&self.root, Path::new(""), 0, &mut visited, &mut found)?;
        self.ages.now = now();
        let mut scan = Scan::default();
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(&**path));
        let mut changed = before != self.files.len();
        for path in found.into_keys() {
            let path = Arc::new(path);
            let mut file = self.files.remove(&path).unwrap_or_default();
            let failure = file.failure.clone();
            changed |= self.refresh(&path, &mut file, &mut scan) || file.failure != failure;
            self.files.insert(path, file);
        }
        if changed {
            self.settle(&mut scan);
            self.reports.clone_from(&scan.reports);
        } else {
            scan.reports.clone_from(&self.reports);
        }
        Ok(scan)
    }

    /// Reads one file if it may have changed. True if its documents were read anew.
    fn refresh(&mut self, path: &Arc<PathBuf>, file: &mut File, scan: &mut Scan) -> bool {
        let full = self.root.join(&**path);
        let mark = match mark(&full) {
            Ok(mark) => mark,
            Err(error) => return file.fail(path, 0, format!("can't be read: {error}")),
        };
        if file.mark == Some(mark) && !mark.young && !file.emptied {
            return false;
        }
        file.mark = Some(mark);
        // Reading a pipe would wait for whoever writes it, and a device has no end.
        if !mark.regular {
            return file.fail(path, 0, "is no regular file".into());
        }
        if mark.size > MAX_FILE {
            return file.fail(path, 0, format!("is larger than {} MiB", MAX_FILE >> 20));
        }
        let content = match read(&full) {
            Ok(content) => content,
            Err(error) => {
                file.mark = None;
                return file.fail(path, 0, format!("can't be read: {error}"));
            }
        };
        if content.is_empty() && !file.documents.is_empty() && !file.emptied {
            // somebody is probably about to write it: believe it the second time
            file.emptied = true;
            scan.again = true;
            return false;
        }
        file.emptied = false;
        if content == file.content && file.failure.is_none() {
            return false;
        }
        let parsed = self.parse(path, file, &content);
        file.content = content;
        parsed
    }

    fn parse(&mut self, path: &Arc<PathBuf>, file: &mut File, content: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(content) else {
            return file.fail(path, 0, "is no UTF-8 text".into());
        };
        let nodes = match yaml::parse(text) {
            Ok(nodes) => nodes,
            Err(error) => return file.fail(path, error.line, format!("is no YAML: {}", error.message)),
        };
        let mut reader =
            Reader { file: Some(path.clone()), cluster_domain: &self.cluster_domain, ages: &mut self.ages };
        file.failure = None;
        let documents = nodes.into_iter().flat_map(|node| reader.read(node)).collect();
        file.replace(documents);
        true
    }

    /// Which document holds for each resource, and what differs from before.
    fn settle(&mut self, scan: &mut Scan) {
        let mut next: BTreeMap<ResourceKey, Arc<Document>> = BTreeMap::new();
        let selection = self.selection();
        for file in self.files.values() {
            scan.reports.extend(file.failure.clone());
            for document in &file.documents {
                let Some(key) = &document.key else {
                    scan.reports.extend(document.reports.iter().cloned());
                    continue;
                };
                if !key.namespace.is_empty() && !selection.counts(&key.namespace) {
                    continue;
                }
                match next.get(key) {
                    Some(first) => {
                        scan.reports.push(duplicate(key, document, first));
                        // of two that contradict each other neither can be trusted
                        if key.kind.is_security() {
                            let mut closed = Document::clone(first);
                            let policy = SecurityPolicy::unreadable(key.clone(), Coverage::Namespace);
                            closed.outcome = Outcome::FailsClosed(policy);
                            next.insert(key.clone(), Arc::new(closed));
                        }
                    }
                    None => {
                        scan.reports.extend(document.reports.iter().cloned());
                        next.insert(key.clone(), document.clone());
                    }
                }
            }
        }
        for (key, document) in &next {
            if self.current.get(key).is_some_and(|old| Arc::ptr_eq(old, document)) {
                continue;
            }
            let (outcome, place) = (document.outcome.clone(), document.place.clone());
            scan.updates.push(Update { key: key.clone(), outcome, place });
        }
        for (key, document) in &self.current {
            if !next.contains_key(key) {
                let place = document.place.clone();
                scan.updates.push(Update { key: key.clone(), outcome: Outcome::Deleted, place });
                self.ages.seen.remove(key);
            }
        }
        self.current = next;
    }
}

impl Folder {
    /// Which namespaces count: the first mesh configuration says it, over the labels of the Namespaces that are written.
    fn selection(&self) -> Selection {
        let mut selection = Selection::default();
        let documents = || self.files.values().flat_map(|file| &file.documents);
        let mesh = documents().find_map(|document| match &document.outcome {
            Outcome::Applied(Resource::Mesh(mesh)) => Some(mesh),
            _ => None,
        });
        selection.select(mesh.map(|mesh| mesh.discovery_selectors.clone()).unwrap_or_default());
        for document in documents() {
            if let (Some(key), Outcome::Applied(Resource::Namespace(labels))) =
                (&document.key, &document.outcome)
            {
                selection.label(&key.name, Some(labels.clone()));
            }
        }
        selection
    }
}

impl File {
    /// Takes what was read. Where a document doesn't say which resource it is, it may be any that is missing now: those stay.
    fn replace(&mut self, mut documents: Vec<Document>) {
        let mut kept = Vec::new();
        if documents.iter().any(|document| document.unidentified) {
            let named =
                |key: &ResourceKey| documents.iter().any(|document| document.key.as_ref() == Some(key));
            kept.extend(self.documents.extract_if(.., |old| old.key.as_ref().is_some_and(|key| !named(key))));
        }
        if !kept.is_empty() {
            for report in documents.iter_mut().filter(|d| d.unidentified).flat_map(|d| &mut d.reports) {
                report.message.push_str("; what this file said before and doesn't say now stays in force");
            }
        }
        self.documents = documents.into_iter().map(Arc::new).chain(kept).collect();
    }

    /// Notes why the file can't be used; its documents stay, so this is false.
    fn fail(&mut self, path: &Arc<PathBuf>, line: u32, message: String) -> bool {
        let kept = if self.documents.is_empty() {
            ""
        } else {
            "; the last good version of its resources stays in force"
        };
        self.failure = Some(Report {
            file: Some(path.clone()),
            line,
            kind: "".into(),
            namespace: "".into(),
            name: "".into(),
            field: String::new(),
            message: format!("{message}{kept}"),
            severity: Severity::Error,
        });
        false
    }
}

fn duplicate(key: &ResourceKey, document: &Document, first: &Document) -> Report {
    let origin = &first.place.origin;
    let file = origin.file.as_ref().map(|f| f.display().to_string()).unwrap_or_default();
    Report {
        file: document.place.origin.file.clone(),
        line: document.place.origin.line,
        kind: format!("{:?}", key.kind).into(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        field: "metadata.name".into(),
        message: match key.kind.is_security() {
            true => format!(
                "is defined in {file}:{} already: everything that is sent to workloads of its namespace is refused",
                origin.line
            ),
            false => format!("is defined in {file}:{} already; this one is not applied", origin.line),
        },
        severity: Severity::Error,
    }
}

fn mark(path: &Path) -> io::Result<Mark> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?;
    // a clock that jumped counts as young
    let young = SystemTime::now().duration_since(modified).map_or(true, |age| age < YOUNG);
    Ok(Mark {
        inode: metadata.ino(),
        device: metadata.dev(),
        size: metadata.len(),
        modified,
        young,
        regular: metadata.is_file(),
    })
}

/// Reads a file that may have grown since it was looked at.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(content)
}

/// Lists YAML files below `root`. Hidden ones are left out (editors' and Kubernetes' own), links are followed.
fn list(
    root: &Path,
    below: &Path,
    depth: usize,
    visited: &mut HashSet<(u64, u64)>,
    found: &mut BTreeMap<PathBuf, ()>,
) -> io::Result<()> {
    let metadata = fs::metadata(root.join(below))?;
    if depth > MAX_DEPTH || !visited.insert((metadata.dev(), metadata.ino())) {
        return Ok(());
    }
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        if text.starts_with('.') {
            continue;
        }
        let path = below.join(&name);
        let extension = Path::new(text).extension().and_then(|e| e.to_str());
        let is_yaml = matches!(extension, Some("yaml" | "yml" | "json"));
        let Ok(metadata) = fs::metadata(root.join(&path)) else {
            // A link that leads nowhere is a file that can't be read. What isn't there at all went meanwhile.
            let is_link = fs::symlink_metadata(root.join(&path)).is_ok_and(|found| found.is_symlink());
            if is_link && is_yaml {
                found.insert(path, ());
            }
            continue;
        };
        if metadata.is_dir() {
            if let Err(error) = list(root, &path, depth + 1, visited, found) {
                tracing::warn!("the folder {} can't be listed: {error}", root.join(&path).display());
            }
        } else if is_yaml {
            found.insert(path, ());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
