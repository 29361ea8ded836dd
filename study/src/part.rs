//! Which part of a model is quantized: one layer or module at a time, or all but one.
//!
//! ```text
//! all                        everything
//! only PLACE                 nothing else is quantized: the damage of that part alone
//! without PLACE              that part is left as it is: what restoring it gives back
//! PLACE                      layer 3 | layer 3 qkv | qkv | a glob of module names
//! only each layer            expands to one level for each layer; also `each stage`, `each layer stage`, and `without ...`
//! ```
//!
//! A stage is the linears that share an input (`qkv`, `output`, `gate-up`, `down`): runtimes fuse them, so that they are
//! never taken apart.

use crate::StudyError;
use model::{Config, Stage};
use quantize::Options;

/// The stages by name.
const STAGES: [(&str, Stage); 4] =
    [("qkv", Stage::Qkv), ("output", Stage::Output), ("gate-up", Stage::GateUp), ("down", Stage::Down)];

/// A stage by its name.
pub fn name(stage: Stage) -> &'static str {
    STAGES.iter().find(|(_, known)| *known == stage).map_or("", |(name, _)| *name)
}

/// The parts that `part` stands for in a model that `config` describes: itself, or one for each place.
pub fn expanded(part: &str, config: &Config) -> Vec<String> {
    let Some((how, "each", what)) = split(part).map(|(how, rest)| {
        let (first, what) = rest.split_once(' ').unwrap_or((rest, ""));
        (how, first, what)
    }) else {
        return vec![part.to_owned()];
    };
    let layers = 0..config.layers.len();
    let places: Vec<String> = match what {
        "layer" => layers.map(|layer| format!("layer {layer}")).collect(),
        "stage" => STAGES.iter().map(|(name, _)| (*name).to_owned()).collect(),
        "layer stage" => {
            layers.flat_map(|layer| STAGES.iter().map(move |(name, _)| format!("layer {layer} {name}"))).collect()
        }
        _ => return vec![part.to_owned()],
    };
    places.into_iter().map(|place| format!("{how} {place}")).collect()
}

/// `only` or `without`, and the place.
pub fn split(part: &str) -> Option<(&str, &str)> {
    part.split_once(' ').filter(|(how, _)| ["only", "without"].contains(how))
}

/// What kind of part a place is. Parts of one kind don't overlap, but for globs; parts of different kinds do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Modules by a glob.
    Glob,
    /// `qkv`: a stage of all layers.
    Stage,
    /// `layer 3`.
    Layer,
    /// `layer 3 qkv`.
    LayerStage,
}

impl Kind {
    /// For one of them, and for all.
    pub fn names(self) -> [&'static str; 2] {
        match self {
            Self::Glob => ["part", "parts"],
            Self::Stage => ["stage", "stages"],
            Self::Layer => ["layer", "layers"],
            Self::LayerStage => ["stage of a layer", "stages of layers"],
        }
    }
}

/// The kind of `place`.
pub fn kind(place: &str) -> Kind {
    match place.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["layer", _, _] => Kind::LayerStage,
        ["layer", _] => Kind::Layer,
        [name] if STAGES.iter().any(|(known, _)| known == name) => Kind::Stage,
        _ => Kind::Glob,
    }
}

/// `options` that leave the rest of the model, or the part, in full precision.
pub fn applied(part: &str, options: Options, config: &Config) -> Result<Options, StudyError> {
    if part == "all" {
        return Ok(options);
    }
    let wrong = |what: &str| StudyError::Settings(format!("part = \"{part}\": {what}"));
    let shape = "write `all`, `only PLACE` or `without PLACE`; PLACE is `layer 3`, `layer 3 qkv`, `qkv` or a glob";
    let (how, place) = split(part).ok_or_else(|| wrong(shape))?;
    let names = modules(place, config).ok_or_else(|| wrong("the model has no such layer"))?;
    let without = Options { skip: names, ..options };
    if how == "without" {
        return Ok(without);
    }
    // What a run without the part would quantize is what a run of it alone leaves.
    let rest = without.clone().check(config)?;
    let rest = rest.quantized().map(|module| module.name.clone()).collect();
    Ok(Options { skip: rest, ..without })
}

/// The names, or the glob, of `place`; none where it names a layer that isn't there.
pub fn modules(place: &str, config: &Config) -> Option<Vec<String>> {
    let stage = |name: &str| STAGES.iter().find(|(known, _)| *known == name).map(|(_, stage)| *stage);
    let linears = |layer: usize, stage: Stage| config.linears(layer, stage).into_iter().map(|linear| linear.name);
    let layers = 0..config.layers.len();
    let words: Vec<&str> = place.split_whitespace().collect();
    match words.as_slice() {
        ["layer", number] => {
            let layer = number.parse().ok().filter(|layer| layers.contains(layer))?;
            Some(Stage::ALL.into_iter().flat_map(|stage| linears(layer, stage)).collect())
        }
        ["layer", number, name] => {
            let layer = number.parse().ok().filter(|layer| layers.contains(layer))?;
            Some(linears(layer, stage(name)?).collect())
        }
        [name] if stage(name).is_some() => {
            let stage = stage(name)?;
            Some(layers.flat_map(|layer| linears(layer, stage)).collect())
        }
        _ => Some(vec![place.to_owned()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Checkpoint;

    #[test]
    fn each_stands_for_every_layer_or_stage() {
        let config = Checkpoint::open("demo").unwrap().config;
        let layers = config.layers.len();
        assert_eq!(expanded("only each layer", &config).len(), layers);
        assert_eq!(expanded("without each layer stage", &config).len(), 4 * layers);
        assert_eq!(expanded("only each stage", &config)[2], "only gate-up");
        assert_eq!(expanded("only layer 1", &config), ["only layer 1"]);
        assert_eq!(expanded("all", &config), ["all"]);
    }

    #[test]
    fn kinds_are_told_apart() {
        let kinds = ["layer 3 qkv", "layer 3", "down", "*.o_proj"].map(kind);
        assert_eq!(kinds, [Kind::LayerStage, Kind::Layer, Kind::Stage, Kind::Glob]);
    }

    #[test]
    fn a_part_and_the_rest_are_the_whole() {
        let config = Checkpoint::open("demo").unwrap().config;
        let all: Vec<String> =
            (0..config.layers.len()).flat_map(|layer| modules(&format!("layer {layer}"), &config).unwrap()).collect();
        let quantized = |part: &str| {
            let json = serde_json::json!({
                "method": "rtn", "bits": 4, "group_size": 64, "symmetric": true, "act_order": "none",
                "scale_search": "minmax", "damping": 0.01, "inputs": "original", "sequence": "block",
                "formats": ["gptq"], "overrides": [], "skip": [], "lm_head": false, "shard_bytes": 1 << 30,
                "calibration": [], "windows": { "samples": 1, "sequence_length": 8, "seed": 0, "packing": "concat", "field": null },
            });
            let options: Options = serde_json::from_value(json).unwrap();
            let plan = applied(part, options, &config).unwrap().check(&config).unwrap();
            plan.quantized().map(|module| module.name.clone()).collect::<Vec<_>>()
        };
        for place in ["layer 0", "layer 1 qkv", "down", "*.o_proj"] {
            let (only, without) = (quantized(&format!("only {place}")), quantized(&format!("without {place}")));
            assert_eq!(only.len() + without.len(), all.len(), "{place}");
            assert!(only.iter().all(|name| all.contains(name) && !without.contains(name)), "{place}");
        }
        assert_eq!(quantized("only layer 1 qkv").len(), 3);
        assert!(modules("layer 99", &config).is_none());
    }
}
