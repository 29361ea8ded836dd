//! The same integers in another format: a checkpoint is opened, what each format can't hold is refused, the rest is
//! repacked, read back and compared. Nothing is rounded again, except into the float type of `dequantized`.

use crate::{
    QuantizeError, card, files,
    plan::{check_formats, check_held},
    prove::{self, Proof},
    report::Output,
};
use kernels::{ActOrder, QuantSpec, QuantizedMatrix};
use model::{
    Checkpoint, ModelError,
    format::{self, Contents, QuantizedModule, StoredType, Target},
};
use serde::Serialize;
use serde_json::Value;
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// The checkpoint: folder, hub id, GGUF file or `demo`.
    pub input: String,
    /// Where the result goes.
    pub out: PathBuf,
    /// The formats to write.
    pub formats: Vec<Target>,
    /// Largest size of a shard in bytes.
    pub shard_bytes: u64,
    /// Whether `out` may be replaced.
    pub overwrite: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Converted {
    /// The checkpoint as the user called it.
    pub input: String,
    /// Its format.
    pub input_format: String,
    /// What was written, a checkpoint for each format.
    pub outputs: Vec<Output>,
    /// What was read back and compared.
    pub proof: Proof,
}

/// A quantized linear of the source, its settings as the integers show them.
struct Survey {
    module: QuantizedModule,
    smallest_zero: u8,
}

impl Conversion {
    /// Does it.
    pub fn run(&self) -> Result<Converted, QuantizeError> {
        check_formats(&self.formats)?;
        if self.out.exists() && !self.overwrite {
            return Err(QuantizeError::OutputExists { path: self.out.clone() });
        }
        files::check_name(&self.out, &self.formats)?;
        let source = Checkpoint::open(&self.input)?;
        let input_format = model::inspect::inspect(&self.input)?.format;
        let packed: Vec<Target> = self.formats.iter().copied().filter(|format| format.takes_integers()).collect();
        let surveyed = if packed.is_empty() { Vec::new() } else { survey(&source, &self.input)? };
        check_zero_points(&surveyed, &packed)?;
        let modules: Vec<QuantizedModule> = surveyed.into_iter().map(|found| found.module).collect();
        check_held(&modules, &packed)?;
        let work = files::WorkFolder::beside(&self.out)?;
        let (unpublished, mut proof) = (work.unpublished(&self.formats), Proof::default());
        if self.formats.len() > 1 {
            std::fs::create_dir_all(&unpublished).map_err(QuantizeError::io(&unpublished))?;
        }
        for &format in &self.formats {
            let folder = files::place(&unpublished, &self.formats, format);
            self.write(&folder, format, &source, &modules)?;
            card::write_converted(&folder, &self.input, &source.path, &input_format, format)?;
            proof = proof.and(prove(&folder, format, &source, &modules)?);
        }
        files::publish(&unpublished, &self.out, &work.aside())?;
        let place = |format: &Target| Output::measure(*format, &files::place(&self.out, &self.formats, *format));
        let outputs = self.formats.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Converted { input: self.input.clone(), input_format, outputs, proof })
    }

    fn write(
        &self,
        folder: &Path,
        format: Target,
        source: &Checkpoint,
        modules: &[QuantizedModule],
    ) -> Result<(), QuantizeError> {
        // Float weights come from the source's own: they need no float16 scales.
        let modules = if format.takes_integers() { modules } else { &[] };
        let load = |index: usize| load(source, &modules[index]);
        let contents = Contents {
            source,
            spec: most_common(modules),
            modules,
            load: &load,
            meta: Value::Null,
            damping: source.config_json["quantization_config"]["damp_percent"].as_f64().unwrap_or(0.0),
            true_sequential: source.config_json["quantization_config"]["true_sequential"].as_bool().unwrap_or(false),
            shard_bytes: self.shard_bytes,
        };
        Ok(format::write(folder, format, &contents)?)
    }
}

impl Converted {
    /// As people read it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for output in &self.outputs {
            let _ = writeln!(text, "{}", output.text());
        }
        let Proof { modules, codes, .. } = self.proof;
        if codes > 0 {
            let _ =
                writeln!(text, "proof: {modules} modules ({codes} integers) read back equal to those of the input\n");
        }
        let written: Vec<String> = self.outputs.iter().map(|output| output.path.display().to_string()).collect();
        let _ = write!(text, "written: {}", written.join(", "));
        text
    }
}

/// The names of the packed linears of `source`.
fn packed_linears(source: &Checkpoint) -> Result<Vec<String>, ModelError> {
    let mut found = Vec::new();
    for name in source.tensors.names() {
        if source.tensors.stored_type(&name)? == StoredType::Quantized {
            found.extend(name.strip_suffix(".weight").map(str::to_owned));
        }
    }
    Ok(found)
}

/// Every packed linear, looked through once: files don't say whether all zero-points are in the middle, or whether a
/// group index is needed at all.
fn survey(source: &Checkpoint, input: &str) -> Result<Vec<Survey>, QuantizeError> {
    let names = packed_linears(source)?;
    if names.is_empty() {
        return Err(QuantizeError::Option(format!(
            "{input} holds no quantized linears to repack; quantize it, or convert it with --format dequantized"
        )));
    }
    let look = |name: String| {
        let Some(matrix) = source.tensors.quantized(&name)? else {
            return Err(QuantizeError::Option(format!(
                "{input} holds `{name}` in blocks of its own kind, whose integers no other format takes over; only \
                 --format dequantized can be made of it"
            )));
        };
        let smallest_zero = matrix.zeros.iter().copied().min().unwrap_or(0);
        let spec = shown_settings(&matrix);
        let module = QuantizedModule { name, outputs: matrix.outputs, inputs: matrix.inputs, spec };
        Ok(Survey { module, smallest_zero })
    };
    names.into_iter().map(look).collect()
}

/// The settings of `matrix`, with symmetry and order as its numbers show them.
fn shown_settings(matrix: &QuantizedMatrix) -> QuantSpec {
    let columns = matrix.spec.columns_per_group(matrix.inputs);
    let stored_order = matrix.group_index.iter().enumerate().all(|(column, &group)| group as usize == column / columns);
    let act_order = match matrix.spec.act_order {
        _ if !stored_order => ActOrder::Desc,
        ActOrder::Desc => ActOrder::None,
        order => order,
    };
    let middle = 1 << (matrix.spec.bits - 1);
    let symmetric = matrix.zeros.iter().all(|&zero| zero == middle);
    QuantSpec { act_order, symmetric, smallest_zero: 0, ..matrix.spec }
}

/// The integers of `module` under the settings it was surveyed with.
fn load(source: &Checkpoint, module: &QuantizedModule) -> Result<QuantizedMatrix, ModelError> {
    let missing =
        || ModelError::Tensor { tensor: module.name.clone(), what: "its integers are no longer there".to_owned() };
    let matrix = source.tensors.quantized(&module.name)?.ok_or_else(missing)?;
    Ok(QuantizedMatrix { spec: module.spec, ..matrix })
}

/// Refuses a zero-point that a format has no number for.
fn check_zero_points(surveyed: &[Survey], formats: &[Target]) -> Result<(), QuantizeError> {
    for &format in formats {
        let smallest = format.smallest_zero();
        if let Some(found) = surveyed.iter().find(|found| found.smallest_zero < smallest) {
            let what =
                format!("has the zero-point {}, and {smallest} is the smallest; gptq_v2 holds it", found.smallest_zero);
            let source = ModelError::Tensor { tensor: found.module.name.clone(), what };
            return Err(QuantizeError::Format { format, source });
        }
    }
    Ok(())
}

/// The settings that most modules share.
fn most_common(modules: &[QuantizedModule]) -> QuantSpec {
    let mut counts: Vec<(QuantSpec, usize)> = Vec::new();
    for module in modules {
        match counts.iter_mut().find(|(spec, _)| *spec == module.spec) {
            Some((_, count)) => *count += 1,
            None => counts.push((module.spec, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max();
    let unquantized = QuantSpec {
        bits: 8,
        group_size: None,
        symmetric: true,
        act_order: ActOrder::None,
        scale_search: kernels::ScaleSearch::MinMax,
        smallest_zero: 0,
    };
    counts.into_iter().find(|(_, count)| Some(*count) == most).map_or(unquantized, |(spec, _)| spec)
}

/// Reads what was written back and compares it with the source.
fn prove(
    folder: &Path,
    format: Target,
    source: &Checkpoint,
    modules: &[QuantizedModule],
) -> Result<Proof, QuantizeError> {
    let written = Checkpoint::open(&folder.to_string_lossy())?;
    if !format.takes_integers() {
        for name in packed_linears(source)? {
            let weight = format.rounded(source.tensors.read(&format!("{name}.weight"))?, &source.config_json);
            prove::same_weight(&name, format, &weight, written.tensors.as_ref())?;
        }
        return Ok(Proof { formats: 1, ..Proof::default() });
    }
    let mut codes = 0;
    for module in modules {
        let matrix = load(source, module)?;
        if format.holds_integers() {
            prove::same_integers(&module.name, format, &matrix, written.tensors.as_ref())?;
        } else {
            let weight = format.weight(&matrix, &source.config_json);
            prove::same_weight(&module.name, format, &weight, written.tensors.as_ref())?;
        }
        codes += matrix.codes.len() as u64;
    }
    Ok(Proof { formats: 1, modules: modules.len(), codes, tensors: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use kernels::ScaleSearch;

    fn matrix(act_order: ActOrder, zeros: [u8; 4], group_index: Vec<u32>) -> QuantizedMatrix {
        let spec = QuantSpec {
            bits: 4,
            group_size: Some(8),
            symmetric: false,
            act_order,
            scale_search: ScaleSearch::Mse,
            smallest_zero: 1,
        };
        let (codes, scales) = (vec![0; 32], vec![f16::ONE; 4]);
        QuantizedMatrix { outputs: 2, inputs: 16, spec, codes, scales, zeros: zeros.into(), group_index }
    }

    #[test]
    fn symmetry_and_order_are_what_the_numbers_show() {
        let stored: Vec<u32> = [[0; 8], [1; 8]].concat();
        let dealt: Vec<u32> = (0..16).map(|column| column % 2).collect();
        let shown = |matrix: &QuantizedMatrix| {
            let spec = shown_settings(matrix);
            (spec.symmetric, spec.act_order, spec.smallest_zero)
        };
        assert_eq!(shown(&matrix(ActOrder::Static, [8; 4], stored.clone())), (true, ActOrder::Static, 0));
        assert_eq!(shown(&matrix(ActOrder::Desc, [8, 8, 8, 7], stored)), (false, ActOrder::None, 0));
        assert_eq!(shown(&matrix(ActOrder::None, [8; 4], dealt)), (true, ActOrder::Desc, 0));
    }

    #[test]
    fn a_zero_point_of_zero_is_refused_where_none_can_be_stored() {
        let spec = shown_settings(&matrix(ActOrder::None, [0; 4], vec![0; 16]));
        let module = QuantizedModule { name: "m".into(), outputs: 2, inputs: 16, spec };
        let surveyed = [Survey { module, smallest_zero: 0 }];
        let formats = ["gptq_v2", "awq", "compressed-tensors"].map(|format| format.parse().unwrap());
        assert!(check_zero_points(&surveyed, &formats).is_ok());
        let error = check_zero_points(&surveyed, &["gptq".parse().unwrap()]).unwrap_err().to_string();
        assert_eq!(
            error,
            "--format gptq can't hold this: tensor `m`: has the zero-point 0, and 1 is the smallest; gptq_v2 holds it"
        );
    }
}
