//! The one integration test binary: one link instead of ten.

mod activations; // what a step keeps: parked elsewhere, or never whole
mod allegro_dit; // the transformer against diffusers, forwards and backwards
mod allegro_sample; // whole pipelines from a seed, against diffusers
mod allegro_vae; // its autoencoder: tiles joined by ramps, memory, against diffusers
mod ancestral_scheduler; // steps that stir, min-SNR and noise offset, against diffusers
mod architecture; // who may import whom
mod bench; // measuring a step
mod blocks; // no graph of candle's within a block
mod checkpoints; // a run goes on from what it left
mod checks; // what would fail late, told before anything is loaded
mod cli; // the program as a user runs it
mod cogvideox_dit; // the transformer against diffusers, forwards and backwards
mod cogvideox_sample; // whole pipelines from a seed, against diffusers
mod cogvideox_vae; // encode, decode, tiles
mod config; // run files
mod conv3d; // the convolution under the autoencoders
mod counting; // the most bytes that a thread holds
mod crash; // killed, doubled, signalled, left alone for long
mod cuda; // kernels compile for every card; a build without CUDA says so
mod data; // layouts, captions, buckets, order
mod disk; // written whole or not at all
mod dist; // runs on several processes
mod dit_answers; // what the transformers' tests share
mod examples; // the programs of examples/, run one after the other
mod faults; // disks and memory that fail
mod fingerprints; // names of records, fingerprints of runs: each ingredient by itself
mod finite; // NaN and the infinities, found in stored tensors
mod flow_family; // micro-batches, records and sampling of a family of flow matching, made up
mod flow_objective; // what flow matching trains on, against torch
mod flow_schedulers; // sigmas, steps and noise of flow matching, against diffusers
mod fuzz; // mutated input of every kind
mod gpu_check; // the visit to a machine with a GPU, rehearsed without one
mod guidance_rules; // joins of the predictions, and steps without, against diffusers
mod hub; // checkpoints of the Hugging Face Hub
mod hunyuan_video_dit; // its transformer, of all three kinds, against diffusers
mod hunyuan_video_sample; // same
mod hunyuan_video_vae; // its autoencoder: whole clips, tiles, memory, against diffusers
#[cfg(target_os = "linux")]
mod kernels; // kernels of the GPU, run on the CPU
mod lora; // which layers learn, first values, dropout, files, against PEFT and torch
mod lora_deltas; // distilled adapters: differences of whole parameters, merged and sampled
mod lora_formats; // adapter files of several programs, in and out, shrunk and merged
mod lora_fused; // adapters of layers that are rows of one elsewhere
mod lora_genmo; // adapters of Mochi: genmo's own files, and ComfyUI's
mod lora_names; // adapters under anybody's names, from files and folders
mod lora_peft; // adapters whose pipeline loads none, by PEFT as the model card says
mod ltx_video_dit; // the transformer against diffusers, forwards and backwards
mod ltx_video_sample; // whole pipelines from a seed, against diffusers
mod ltx_video_vae; // encode, decode, normalised latents
mod magic; // pointers, pickles and single files in place of weights
mod migrate; // other trainers' commands as run files
mod mochi_dit;
mod mochi_sample;
mod mochi_vae; // its autoencoder: whole clips, pieces, tiles, memory, against diffusers
mod needs; // tests that cannot run everywhere
mod offload; // frozen weights that leave memory
mod ops; // operations with backward passes of their own, against torch and their formulas
mod optim; // AdamW, clipping, averages, schedules, against torch
mod plan; // memory of a run, foretold
mod precompute; // clips and captions, encoded once
mod report; // a run as a page
mod rng; // torch's CPU generator, bit for bit
mod sample_prompts; // many clips in one call, and what is not done twice
mod schedulers; // timesteps, steps and noise, against diffusers
mod segments; // gradients of a network whose blocks change text and clip
mod settings; // every key and every flag arrives where it is used
mod shards; // frozen weights shared out over ranks
mod step_cache; // steps that reuse what others computed, against diffusers
mod step_lists; // steps and schedulers that a request chooses, against diffusers
mod storage; // matrices in few bits, against the programs that wrote them
mod text; // captions as ids and embeddings
mod thresholds; // sizes at which code takes another way
mod training; // runs from clips to adapters, against PyTorch
mod vae_bf16; // the autoencoders as a GPU computes them
mod vae_tiles; // tiles of the autoencoders, and clips in pieces, against diffusers
mod variants; // weights as fp16 or bf16, alone or chosen
mod video; // decoding, selection, resizing and encoding of real files
mod vision; // pictures as embeddings, against transformers
mod wan_dit; // the transformer against diffusers, forwards and backwards
mod wan_sample; // whole pipelines from a seed, against diffusers
mod wan_vae; // encode, decode, piece by piece
mod watching; // the log of a run, TensorBoard, the model card
