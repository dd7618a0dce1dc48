//! Embedded prompts of a call: each distinct text once, from the records of a run where there are some.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::args::Args;
use crate::commands::text_records::TextRecords;
use crate::data::cache::{Cache, Picture, TextId};
use crate::lora::scaled_file::ScaledFile;
use crate::models::Family;
use crate::models::family::{TextEmbeds, TextEncoder};
use crate::nn::Load;
use crate::run_dir::RunDir;
use crate::sample::{Embedded, Request};
use crate::train::validate::Prompt;

/// Embeds the prompts of requests, each with the prompt that it was made of. The text encoder loads if a text is new, and is
/// freed.
///
/// # Errors
/// Fails for missing or broken files of the checkpoint, and for records that cannot be read.
pub fn embed(
    args: &Args,
    family: &dyn Family,
    load: &Load,
    requests: Vec<(&Prompt, Request)>,
) -> anyhow::Result<Vec<Embedded>> {
    let mut texts = Texts {
        family,
        load,
        encoder: None,
        records: records(args, family, load)?,
        known: HashMap::new(),
    };
    let embedded = requests.into_iter().map(|(prompt, request)| {
        let ids = ids(prompt, &request, family.spec().sees_pictures);
        let all = ids.into_iter().map(|(id, picture)| texts.of(id, picture));
        let text = TextEmbeds::cat(&all.collect::<anyhow::Result<Vec<_>>>()?)?;
        Ok(Embedded { request, text })
    });
    let embedded = embedded.collect();
    if let Some((cache, _)) = &texts.records {
        cache.save();
    }
    embedded
}

/// Returns the texts of a request, in the order of their embeddings, each with its picture.
fn ids<'r>(prompt: &Prompt, request: &'r Request, sees_pictures: bool) -> Vec<(TextId, Option<&'r Tensor>)> {
    let texts = request.prompts_with_pictures().into_iter();
    let id = |(text, picture): (&str, Option<&'r Tensor>)| {
        let image = prompt.image.clone().filter(|_| sees_pictures && picture.is_some());
        let id = TextId {
            text: text.into(),
            picture: image.map(|path| Picture::File(path, [prompt.height, prompt.width])),
        };
        (id, picture)
    };
    texts.map(id).collect()
}

/// Embeds texts, and remembers them.
struct Texts<'a> {
    family: &'a dyn Family,
    load: &'a Load,
    encoder: Option<Box<dyn TextEncoder>>,
    records: Option<(Cache, TextRecords)>,
    /// On the CPU, (1, L, D) each.
    known: HashMap<TextId, TextEmbeds>,
}

impl Texts<'_> {
    /// Returns an embedded text: a known one, a run's, or a new one.
    fn of(&mut self, id: TextId, picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds> {
        if let Some(known) = self.known.get(&id) {
            return Ok(known.clone());
        }
        let text = match self.recorded(&id)? {
            Some(text) => text,
            None => self.embed(&id, picture)?,
        };
        self.known.insert(id, text.clone());
        Ok(text)
    }

    fn recorded(&self, id: &TextId) -> anyhow::Result<Option<TextEmbeds>> {
        let Some((cache, records)) = &self.records else {
            return Ok(None);
        };
        let key = records.key(cache, id)?;
        if !cache.holds(&key, &records.form)? {
            return Ok(None);
        }
        let tensors = cache.read(&key, &records.form)?;
        let text = TextEmbeds::stack(&[tensors], &self.family.spec().text())?; // (1, L, D)
        Ok(Some(text.to_dtype(self.load.dtype)?))
    }

    fn embed(&mut self, id: &TextId, picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds> {
        let encoder = match &self.encoder {
            Some(encoder) => encoder,
            None => {
                log::info!("loading the text encoder");
                self.encoder.insert(self.family.text_encoder(self.load)?)
            }
        };
        let lost = encoder.truncated_tokens(&id.text)?;
        if lost > 0 {
            let length = self.family.spec().text().tokens;
            let text = &id.text;
            log::warn!("the prompt is truncated to {length} tokens; {lost} at its end are lost: {text:?}");
        }
        let text = encoder.embed(&id.text, picture)?.to_device(&Device::Cpu)?;
        if let Some((cache, records)) = &self.records {
            let tensors = text.tensors().into_iter().map(|tensor| tensor.squeeze(0));
            let tensors = tensors.collect::<candle_core::Result<Vec<_>>>()?;
            records.form.check(&tensors)?;
            let notes = [("caption", id.text.clone())];
            if let Err(error) = cache.write(&records.key(cache, id)?, &records.form, &tensors, &notes) {
                log::warn!("{error:#}; the prompt will be embedded again");
            }
        }
        Ok(text)
    }
}

/// Returns the records of `--text-cache`, or of a run that an adapter comes from.
fn records(args: &Args, family: &dyn Family, load: &Load) -> anyhow::Result<Option<(Cache, TextRecords)>> {
    let folder = match &args.text_cache {
        Some(folder) => folder.clone(),
        None => match args.lora.iter().find_map(run_cache) {
            Some(folder) => folder,
            None => return Ok(None),
        },
    };
    let cache = Cache::open(&folder);
    let records = TextRecords::of(&cache, family, load.dtype, load.quantization.text_encoder)?;
    log::info!("embedded prompts are kept in {}", folder.display());
    Ok(Some((cache, records)))
}

/// Returns the cache of the run that an adapter lies in: beside it, or beside the folder of checkpoints that it lies in.
fn run_cache(lora: &ScaledFile) -> Option<PathBuf> {
    let path = std::path::absolute(&lora.path).ok()?;
    let caches = path
        .ancestors()
        .take(4)
        .map(|folder: &Path| RunDir::new(folder).cache());
    caches.into_iter().find(|cache| cache.join("captions").is_dir())
}
