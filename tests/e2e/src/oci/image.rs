//! The image around its layers: configuration, manifest, index and the archive that holds all. Layers themselves are in `layer`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use ring::digest::{Context as Hasher, SHA256};
use serde_json::{Value, json};
use tar::{Builder, Header};

use super::{Layer, digest, digest_of, epoch};

const MEDIA: &str = "application/vnd.oci.image";

/// An image for this machine's architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    name: String,
    layers: Vec<Layer>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    env: Vec<String>,
    user: String,
    folder: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    gzip: bool,
}

/// What an archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The image's full name.
    pub name: String,
    /// The digest of its manifest: the same for the same input.
    pub digest: String,
}

impl Image {
    /// An image without layers. The name is a full one: `registry/path:tag`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            layers: Vec::new(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            env: Vec::new(),
            user: String::new(),
            folder: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            gzip: false,
        }
    }

    /// One more layer, above the others.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// The program that a container starts, and its first arguments.
    #[must_use]
    pub fn entrypoint<A: Into<String>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Arguments (or the program, without an entry point) that a container may replace.
    #[must_use]
    pub fn command<A: Into<String>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// One more variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// The user, such as `65532:65532`; root by default.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// The working directory; `/` by default.
    #[must_use]
    pub fn folder(mut self, folder: &str) -> Self {
        folder.clone_into(&mut self.folder);
        self
    }

    /// A label of the configuration.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// An annotation of the manifest.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Compresses the layers, or does not: that is quicker to load and larger to keep.
    #[must_use]
    pub fn gzip(mut self, on: bool) -> Self {
        self.gzip = on;
        self
    }

    /// The image's full name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the archive, which gets its name when it is whole.
    ///
    /// # Errors
    /// The name is not full, a file of a layer cannot be read, or the archive cannot be written.
    pub fn write(&self, archive: &Path) -> Result<Written> {
        let partial = archive.with_extension("partial");
        let write = || -> Result<Written> {
            let file = File::create(&partial)?;
            let digest = self.write_to(file, archive.parent().unwrap_or(Path::new(".")))?;
            fs::rename(&partial, archive)?;
            Ok(Written { name: self.name.clone(), digest })
        };
        write().with_context(|| format!("writing the image {} to {}", self.name, archive.display()))
    }

    fn write_to(&self, archive: File, scratch: &Path) -> Result<String> {
        let (_, tag) = self.name.rsplit_once(':').unwrap_or_default();
        ensure!(
            !tag.is_empty() && !tag.contains('/') && self.name.contains('/'),
            "{} is no full image name: take one such as docker.io/library/x:1",
            self.name
        );
        let blob = |layer| Blob::of(layer, scratch, self.gzip);
        let layers = self.layers.iter().map(blob).collect::<Result<Vec<_>>>()?;
        let config = serde_json::to_vec(&self.config(&layers))?;
        let manifest = serde_json::to_vec(&self.manifest(&config, &layers))?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": format!("{MEDIA}.index.v1+json"),
            "manifests": [{
                "mediaType": format!("{MEDIA}.manifest.v1+json"),
                "digest": digest(&manifest),
                "size": manifest.len(),
                "annotations": {
                    "io.containerd.image.name": self.name,
                    "org.opencontainers.image.ref.name": tag,
                },
                "platform": { "architecture": architecture(), "os": "linux" },
            }],
        });
        let mut tar = Builder::new(io::BufWriter::with_capacity(1 << 20, archive));
        add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
        for blob in [&manifest, &config] {
            add(&mut tar, &blob_name(&digest(blob)), blob)?;
        }
        let mut seen = Vec::new();
        for mut layer in layers {
            // A layer that is there twice is one blob.
            if !seen.contains(&layer.digest) {
                layer.file.seek(SeekFrom::Start(0))?;
                let mut header = header(layer.size);
                tar.append_data(&mut header, blob_name(&layer.digest), &layer.file)?;
                seen.push(layer.digest);
            }
        }
        let file = tar.into_inner()?.into_inner().context("the last bytes")?;
        file.sync_all()?;
        Ok(digest(&manifest))
    }

    fn config(&self, layers: &[Blob]) -> Value {
        let mut config = json!({});
        for (name, value) in [
            ("Entrypoint", json!(self.entrypoint)),
            ("Cmd", json!(self.command)),
            ("Env", json!(self.env)),
            ("User", json!(self.user)),
            ("WorkingDir", json!(self.folder)),
            ("Labels", json!(self.labels)),
        ] {
            if ![json!([]), json!({}), json!("")].contains(&value) {
                config[name] = value;
            }
        }
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|it| &it.content).collect::<Vec<_>>(),
            },
        })
    }

    fn manifest(&self, config: &[u8], layers: &[Blob]) -> Value {
        let suffix = if self.gzip { "+gzip" } else { "" };
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": format!("{MEDIA}.layer.v1.tar{suffix}"),
                    "digest": layer.digest,
                    "size": layer.size,
                })
            })
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": format!("{MEDIA}.manifest.v1+json"),
            "config": {
                "mediaType": format!("{MEDIA}.config.v1+json"),
                "digest": digest(config),
                "size": config.len(),
            },
            "layers": layers,
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        manifest
    }
}

/// What an archive of this crate, or of any other maker, holds: its first image.
///
/// # Errors
/// The file is no OCI image archive, or its image has no name.
pub fn inspect(archive: &Path) -> Result<Written> {
    let read = || -> Result<Written> {
        let mut tar = tar::Archive::new(File::open(archive)?);
        for entry in tar.entries()? {
            let entry = entry?;
            if entry.path()?.as_ref() == Path::new("index.json") {
                let index: Value = serde_json::from_reader(entry)?;
                let manifest = &index["manifests"][0];
                let text = |value: &Value| value.as_str().map(str::to_owned);
                let digest = text(&manifest["digest"]).context("its index has no digest")?;
                let name = text(&manifest["annotations"]["io.containerd.image.name"])
                    .context("its index has no annotation io.containerd.image.name")?;
                return Ok(Written { name, digest });
            }
        }
        anyhow::bail!("it has no index.json")
    };
    read().with_context(|| format!("{} is no OCI image archive", archive.display()))
}

/// A layer that is written already, in a file without a name.
struct Blob {
    file: File,
    size: u64,
    /// Of the file.
    digest: String,
    /// Of the file before it was compressed.
    content: String,
}

impl Blob {
    fn of(layer: &Layer, scratch: &Path, gzip: bool) -> Result<Self> {
        let file = io::BufWriter::with_capacity(1 << 20, nameless(scratch)?);
        let mut file = Hashing::new(file);
        let mut content = None;
        if gzip {
            // Neither name nor time in its header.
            let mut plain = Hashing::new(GzBuilder::new().write(file, Compression::best()));
            layer.write(&mut plain)?;
            content = Some(digest_of(plain.hasher));
            file = plain.inner.finish().context("compressing a layer")?;
        } else {
            layer.write(&mut file)?;
        }
        let digest = digest_of(file.hasher);
        let content = content.unwrap_or_else(|| digest.clone());
        let size = file.size;
        Ok(Self {
            file: file.inner.into_inner().context("writing a layer")?,
            size,
            digest,
            content,
        })
    }
}

/// Layers may be large, so not in memory, and gone with the process however it ends.
fn nameless(folder: &Path) -> Result<File> {
    let name =
        folder.join(format!(".layer-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&name)
        .with_context(|| format!("creating {}", name.display()))?;
    fs::remove_file(&name).with_context(|| format!("removing {}", name.display()))?;
    Ok(file)
}

/// Counts and hashes what goes through it.
struct Hashing<W> {
    inner: W,
    size: u64,
    hasher: Hasher,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, size: 0, hasher: Hasher::new(&SHA256) }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(epoch());
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn add(tar: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    tar.append_data(&mut header(bytes.len() as u64), name, bytes)?;
    Ok(())
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The architecture's name in Go, as images have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample(folder: &Path) -> Image {
        fs::write(folder.join("program"), "#!").unwrap();
        let base = Layer::new().file("/bin/program", &folder.join("program"), 0o755).unwrap();
        let top = Layer::new().bytes("/etc/x", "1", 0o644).unwrap();
        Image::new("docker.io/library/sample:1")
            .layer(base.clone())
            .layer(top)
            .layer(base)
            .entrypoint(["/bin/program"])
            .env("PATH", "/bin")
            .user("65532:65532")
            .label("a", "b")
            .annotation("c", "d")
    }

    #[test]
    fn twice_the_same_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = sample(one.path()).write(&one.path().join("i.tar")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let second = sample(two.path()).write(&two.path().join("i.tar")).unwrap();
        assert_eq!(first, second);
        let read = |folder: &Path| fs::read(folder.join("i.tar")).unwrap();
        assert_eq!(read(one.path()), read(two.path()));
        assert_eq!(inspect(&one.path().join("i.tar")).unwrap(), first);
        let names = fs::read_dir(one.path()).unwrap().count();
        assert_eq!(names, 2, "nothing else is left behind");
    }

    #[test]
    fn every_blob_has_its_digest_as_its_name() {
        for gzip in [false, true] {
            check_blobs(gzip);
        }
    }

    fn check_blobs(gzip: bool) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("i.tar");
        sample(folder.path()).gzip(gzip).write(&file).unwrap();
        let mut archive = tar::Archive::new(File::open(&file).unwrap());
        let mut blobs = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if name.starts_with("blobs/") {
                assert_eq!(blob_name(&digest(&bytes)), name);
            }
            blobs.insert(name, bytes);
        }
        assert_eq!(blobs.len(), 2 + 2 + 2, "the layer that is there twice is one blob");
        let json = |name: &str| serde_json::from_slice::<Value>(&blobs[name]).unwrap();
        let of = |value: &Value| blob_name(value["digest"].as_str().unwrap());
        let manifest = json(&of(&json("index.json")["manifests"][0]));
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
        assert_eq!(manifest["annotations"]["c"], "d");
        let config = json(&of(&manifest["config"]));
        let layer = &manifest["layers"][0];
        let mut content = blobs[&of(layer)].clone();
        assert_eq!(content.len() as u64, layer["size"].as_u64().unwrap());
        assert_eq!(layer["mediaType"].as_str().unwrap().ends_with("tar+gzip"), gzip);
        if gzip {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(content.as_slice()).read_to_end(&mut plain).unwrap();
            content = plain;
        }
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&content));
        let want = json!({
            "Entrypoint": ["/bin/program"], "Env": ["PATH=/bin"], "User": "65532:65532",
            "Labels": {"a": "b"},
        });
        assert_eq!(config["config"], want);
    }

    #[test]
    fn short_names_and_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("i.tar");
        for bad in ["busybox", "busybox:1", "docker.io/library/busybox"] {
            let error = format!("{:#}", Image::new(bad).write(&file).unwrap_err());
            assert!(error.contains("no full image name"), "{error}");
        }
        fs::write(&file, "text").unwrap();
        let error = format!("{:#}", inspect(&file).unwrap_err());
        assert!(error.contains("no OCI image archive"), "{error}");
    }
}
