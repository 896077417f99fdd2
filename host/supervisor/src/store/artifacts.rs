//! Artefacts: from an attempt's staging folder to `store/tenants/<tenant>/results/<RUN>/<STEP>[item]/`, whole or not at all.
//!
//! The order is: sync every file, move the folder in one rename, then write the manifest `<RUN>/.<STEP>[item].json`. The
//! manifest is the proof: a folder without it is a leftover. It stands beside the folder, so that a step that reads the
//! folder sees artefacts only, and no artefact can have its name. What a worker left in staging is hostile input: it is
//! listed, measured and digested here, and nothing is believed of what the worker says about it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tm_core::{
    id::{Digest, RunId, TaskRef, is_name},
    json::Payload,
    time::Millis,
};

use super::{
    disk::{self, DEPTH_MAX, Disk, DiskError, How, Kind, read_whole},
    kept::{Bounds, Kept, surplus},
    sealed::{seal, unseal},
};

const FOLDER: &str = "store/tenants";
/// Files that one attempt may publish.
pub const FILES_MAX: usize = 100_000;
/// Of a name with its folders.
pub const NAME_MAX_BYTES: usize = 1024;
const MANIFEST_MAX_BYTES: u64 = 256 * 1024 * 1024;
const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("'{name}' cannot be a folder's name")]
    BadName { name: String },
    #[error("artefact '{name}' is neither a file nor a folder")]
    NotAFile { name: String },
    #[error("artefact '{name}': the name is longer than {NAME_MAX_BYTES} bytes or {DEPTH_MAX} folders")]
    LongName { name: String },
    /// ARTIFACT_EMPTY.
    #[error("artefact '{name}' is empty")]
    Empty { name: String },
    /// ARTIFACTS_EXCEEDED.
    #[error("the artefacts are larger than {max_bytes} bytes")]
    TooLarge { max_bytes: u64 },
    /// ARTIFACTS_EXCEEDED.
    #[error("more than {FILES_MAX} artefacts")]
    TooMany,
}

/// The folders of a tenant, as paths of the [`Disk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantFolders {
    pub tmp: String,
    pub results: String,
    pub scratch: String,
}

/// What an attempt published, with what it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub component: Digest,
    pub input: Digest,
    pub output: Payload,
    /// Sorted by name.
    pub files: Vec<ManifestFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// With `/` between folders.
    pub name: String,
    pub size_bytes: u64,
    pub digest: Digest,
}

/// One attempt's end.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    pub tenant: &'a str,
    /// The attempt's folder below the tenant's `tmp` ([`tm_core::wire::staging_path`]); it may be missing.
    pub staging: &'a str,
    pub task: TaskRef,
    pub step_id: &'a str,
    pub component: Digest,
    pub input: Digest,
    pub output: &'a Payload,
    pub max_bytes: u64,
}

#[derive(Clone)]
pub struct Artifacts<D: Disk> {
    disk: D,
}

/// The folder of a task below its run's: `STEP` or `STEP[item]`.
#[must_use]
pub fn step_folder(step_id: &str, item: Option<u32>) -> String {
    item.map_or_else(|| step_id.to_owned(), |item| format!("{step_id}[{item}]"))
}

impl<D: Disk> Artifacts<D> {
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(disk: D) -> Result<Self, DiskError> {
        disk::create_folders(&disk, FOLDER)?;
        Ok(Self { disk })
    }

    /// Makes the tenant's folders when they are missing.
    ///
    /// # Errors
    /// [`ArtifactError::BadName`] and those of the disk.
    pub fn tenant(&self, tenant: &str) -> Result<TenantFolders, ArtifactError> {
        let folders = folders(tenant)?;
        for folder in [&folders.tmp, &folders.results, &folders.scratch] {
            disk::create_folders(&self.disk, folder)?;
        }
        Ok(folders)
    }

    /// Moves what an attempt staged to its final place, durably, in place of what an earlier attempt left there. Log
    /// `Succeeded` only after it. A worker that keeps a file open can still write to it; readers can check digests.
    ///
    /// # Errors
    /// What is wrong with the artefacts; staging stays then, and nothing was published.
    pub fn publish(&self, publication: &Publication<'_>) -> Result<Manifest, ArtifactError> {
        let folders = self.tenant(publication.tenant)?;
        let place = Placed::new(&folders, publication.task, publication.step_id)?;
        let staging = format!("{}/{}", folders.tmp, plain(publication.staging)?);
        let mut files = Vec::new();
        let mut left = publication.max_bytes;
        match self.gather(&staging, "", 0, &mut files, &mut left) {
            Err(ArtifactError::Disk(error)) if error.is_not_found() && files.is_empty() => {
                disk::create_folders(&self.disk, &staging)?;
            }
            Err(ArtifactError::TooLarge { .. }) => {
                return Err(ArtifactError::TooLarge { max_bytes: publication.max_bytes });
            }
            gathered => gathered?,
        }
        files.sort_by(|a: &ManifestFile, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            component: publication.component,
            input: publication.input,
            output: publication.output.clone(),
            files,
        };
        disk::create_folders(&self.disk, &place.run)?;
        self.withdraw(&place)?;
        self.disk.rename(&staging, &place.folder)?;
        disk::replace(&self.disk, &place.manifest, &seal(&manifest))?;
        Ok(manifest)
    }

    /// What an earlier attempt of the task published completely from the same component and input: it need not run
    /// again.
    #[must_use]
    pub fn lookup(
        &self,
        tenant: &str,
        task: TaskRef,
        step_id: &str,
        component: Digest,
        input: Digest,
    ) -> Option<Manifest> {
        let place = Placed::new(&folders(tenant).ok()?, task, step_id).ok()?;
        let manifest: Manifest = unseal(&read_whole(&self.disk, &place.manifest, MANIFEST_MAX_BYTES).ok()?)?;
        let complete = manifest.files.iter().all(|file| {
            let opened = self.disk.open(&format!("{}/{}", place.folder, file.name), How::Read);
            opened.and_then(|opened| self.disk.size(&opened)).is_ok_and(|size| size == file.size_bytes)
        });
        (complete && manifest.component == component && manifest.input == input).then_some(manifest)
    }

    /// Removes all results of a run that expired. Doing it again is fine.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn remove_run(&self, tenant: &str, run: RunId) -> Result<(), ArtifactError> {
        Ok(disk::remove_tree(&self.disk, &format!("{}/{run}", folders(tenant)?.results))?)
    }

    /// The runs that have artefacts, with their tenants.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn runs(&self) -> Result<Vec<(String, RunId)>, DiskError> {
        let mut runs = Vec::new();
        for tenant in self.disk.list(FOLDER)?.into_iter().filter(|entry| entry.kind == Kind::Folder) {
            let results = match self.disk.list(&format!("{FOLDER}/{}/results", tenant.name)) {
                Err(error) if error.is_not_found() => continue,
                listed => listed?,
            };
            runs.extend(results.into_iter().filter_map(|run| Some((tenant.name.clone(), run.name.parse().ok()?))));
        }
        Ok(runs)
    }

    /// Removes the artefacts of those of these runs that are over their bounds; returns how many runs stay. Only for runs
    /// that nothing names any more (I10).
    ///
    /// # Errors
    /// Those of the disk; what is left is found again the next time.
    pub fn sweep(&self, runs: Vec<(String, RunId)>, bounds: Bounds, now: Millis) -> Result<usize, ArtifactError> {
        let mut kept = Vec::with_capacity(runs.len());
        for (tenant, run) in runs {
            let (modified, bytes) = self.measure(&format!("{}/{run}", folders(&tenant)?.results), 0)?;
            kept.push(Kept { modified, bytes, what: (tenant, run) });
        }
        let (goes, stays) = surplus(kept, bounds, now);
        for Kept { bytes, what: (tenant, run), .. } in goes {
            self.remove_run(&tenant, run)?;
            tracing::info!(%tenant, %run, bytes, "swept the artefacts of a forgotten run");
        }
        Ok(stays.len())
    }

    /// When something in a folder was changed last, and the bytes of its files; a folder that is gone has none.
    fn measure(&self, folder: &str, depth: usize) -> Result<(Millis, u64), DiskError> {
        let entries = match self.disk.list(folder) {
            Err(error) if error.is_not_found() => return Ok((Millis(0), 0)),
            listed => listed?,
        };
        let (mut modified, mut bytes) = (Millis(0), 0);
        for entry in entries {
            (modified, bytes) = (modified.max(Millis(entry.modified_ms)), bytes + entry.size_bytes);
            if entry.kind == Kind::Folder && depth < DEPTH_MAX {
                let (below, more) = self.measure(&format!("{folder}/{}", entry.name), depth + 1)?;
                (modified, bytes) = (modified.max(below), bytes + more);
            }
        }
        Ok((modified, bytes))
    }

    /// Removes the staging folders that a predecessor's attempts left, of all tenants. Only at the start: an attempt
    /// that runs needs its own.
    ///
    /// # Errors
    /// When the tenants cannot be listed; a folder that cannot be removed is only warned about.
    pub fn sweep_staging(&self) -> Result<u64, DiskError> {
        let mut removed = 0;
        for tenant in self.disk.list(FOLDER)?.into_iter().filter(|entry| entry.kind == Kind::Folder) {
            let tmp = format!("{FOLDER}/{}/tmp", tenant.name);
            for left in self.disk.list(&tmp).unwrap_or_default() {
                let path = format!("{tmp}/{}", left.name);
                let done = match left.kind {
                    Kind::Folder => disk::remove_tree(&self.disk, &path),
                    Kind::File | Kind::Other => self.disk.unlink(&path),
                };
                match done {
                    Ok(()) => removed += 1,
                    Err(error) => tracing::warn!(%error, "what an earlier attempt staged stays"),
                }
            }
        }
        Ok(removed)
    }

    /// Removes one attempt's staging or scratch folder. One that is gone already is fine.
    ///
    /// # Errors
    /// [`ArtifactError::BadName`] and those of the disk.
    pub fn discard(&self, folder: &str, attempt_folder: &str) -> Result<(), ArtifactError> {
        Ok(disk::remove_tree(&self.disk, &format!("{folder}/{}", plain(attempt_folder)?))?)
    }

    fn withdraw(&self, place: &Placed) -> Result<(), DiskError> {
        // The proof first: a crash in between leaves a folder that proves nothing.
        match self.disk.unlink(&place.manifest) {
            Err(error) if error.is_not_found() => {}
            removed => removed.and_then(|()| self.disk.sync_folder(&place.run))?,
        }
        disk::remove_tree(&self.disk, &place.folder)
    }

    /// Measures, digests and syncs what is below a folder.
    fn gather(
        &self,
        folder: &str,
        prefix: &str,
        depth: usize,
        files: &mut Vec<ManifestFile>,
        left: &mut u64,
    ) -> Result<(), ArtifactError> {
        for entry in self.disk.list(folder)? {
            let name = format!("{prefix}{}", entry.name);
            if name.len() > NAME_MAX_BYTES || depth >= DEPTH_MAX {
                return Err(ArtifactError::LongName { name });
            }
            let path = format!("{folder}/{}", entry.name);
            match entry.kind {
                Kind::Other => return Err(ArtifactError::NotAFile { name }),
                Kind::Folder => self.gather(&path, &format!("{name}/"), depth + 1, files, left)?,
                Kind::File => {
                    if files.len() >= FILES_MAX {
                        return Err(ArtifactError::TooMany);
                    }
                    let file = self.digest(&path, name, left)?;
                    files.push(file);
                }
            }
        }
        Ok(self.disk.sync_folder(folder)?)
    }

    fn digest(&self, path: &str, name: String, left: &mut u64) -> Result<ManifestFile, ArtifactError> {
        let file = self.disk.open(path, How::Read)?;
        let (mut hash, mut size_bytes) = (Sha256::new(), 0);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let got = self.disk.read_at(&file, size_bytes, &mut buffer)?;
            if got == 0 {
                break;
            }
            hash.update(&buffer[..got]);
            size_bytes += got as u64;
            *left = left.checked_sub(got as u64).ok_or(ArtifactError::TooLarge { max_bytes: 0 })?;
        }
        if size_bytes == 0 {
            return Err(ArtifactError::Empty { name });
        }
        self.disk.sync(&file)?;
        Ok(ManifestFile { name, size_bytes, digest: Digest(hash.finalize().into()) })
    }
}

/// Where a task's results are.
struct Placed {
    run: String,
    folder: String,
    manifest: String,
}

impl Placed {
    fn new(folders: &TenantFolders, task: TaskRef, step_id: &str) -> Result<Self, ArtifactError> {
        if !is_name(step_id) {
            return Err(ArtifactError::BadName { name: step_id.to_owned() });
        }
        let run = format!("{}/{}", folders.results, task.run);
        let step = step_folder(step_id, task.item);
        Ok(Self { folder: format!("{run}/{step}"), manifest: format!("{run}/.{step}.json"), run })
    }
}

fn folders(tenant: &str) -> Result<TenantFolders, ArtifactError> {
    if !is_name(tenant) {
        return Err(ArtifactError::BadName { name: tenant.to_owned() });
    }
    let below = |name: &str| format!("{FOLDER}/{tenant}/{name}");
    Ok(TenantFolders { tmp: below("tmp"), results: below("results"), scratch: below("scratch") })
}

/// A name of one folder, which cannot lead elsewhere.
fn plain(name: &str) -> Result<&str, ArtifactError> {
    let bad = name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']);
    if bad { Err(ArtifactError::BadName { name: name.to_owned() }) } else { Ok(name) }
}
