//! What rounding costs a layer's output, which AWQ's search for factors compares. The kernels are `clip.cu` and `grid.cu`.

use super::{
    Buffer, CudaError, Device, DeviceMatrix,
    blas::{Right, product},
    device::by_row,
    grids::{Arranged, DeviceGrids, Groups},
    sources::{CLIP, GRID},
};
use crate::QuantSpec;
use cudarc::driver::PushKernelArg;

/// A weight on the device, `[columns, rows]`, of which is asked what changes of it do to its outputs.
#[derive(Debug)]
pub struct Trial {
    columns: Arranged,
    groups: Groups,
    spec: QuantSpec,
}

impl Trial {
    /// Of `weight`, `[outputs, inputs]`, to be rounded as `spec` says.
    pub fn new(device: &Device, weight: &[f32], inputs: usize, spec: &QuantSpec) -> Result<Self, CudaError> {
        let size = spec.columns_per_group(inputs);
        let index: Vec<u32> = (0..inputs).map(|column| (column / size) as u32).collect();
        let groups = Groups::new(device, &index, spec.groups(inputs))?;
        Ok(Self { columns: device.arrange_as_stored(weight, inputs)?, groups, spec: *spec })
    }

    /// `w G wᵀ` of each row `w` of the weight, for the Gram matrix `gram` of its inputs, `[inputs, inputs]`, whole. Products
    /// are float32, sums float64, here and below.
    pub fn energies(&self, device: &Device, gram: &Buffer<f32>) -> Result<Vec<f64>, CudaError> {
        assert_eq!(gram.len(), self.columns.columns.pow(2), "shape of gram");
        if self.columns.rows == 0 { Ok(Vec::new()) } else { device.energies(&self.columns, gram) }
    }

    /// `e G eᵀ` of each row `e` of `W - Q`.
    pub fn error_energies(
        &self,
        device: &Device,
        matrix: &DeviceMatrix,
        gram: &Buffer<f32>,
    ) -> Result<Vec<f64>, CudaError> {
        let Arranged { weight, rows, columns } = &self.columns;
        assert_eq!((matrix.outputs, matrix.inputs, gram.len()), (*rows, *columns, columns * columns), "shapes");
        if *rows == 0 {
            return Ok(Vec::new());
        }
        let mut errors = device.duplicate(weight)?;
        let group_index = device.upload(&matrix.group_index)?;
        let kernel = device.kernel(&GRID, "coded_errors")?;
        let (column_count, row_count) = (*columns as u32, *rows as u32);
        let mut launch = device.stream().launch_builder(&kernel);
        launch.arg(&mut errors).arg(&matrix.codes).arg(&group_index).arg(&matrix.scales).arg(&matrix.zeros);
        launch.arg(&column_count).arg(&row_count);
        // SAFETY: arguments as the kernel declares them; codes and weights are [columns, rows], every column's group has a
        // grid for every row, and rows beyond the last are left alone.
        unsafe { launch.launch(by_row(*rows, *columns)) }?;
        device.energies(&Arranged { weight: errors, rows: *rows, columns: *columns }, gram)
    }

    /// `e G eᵀ` of each row `e` of `round(W·s) / s - W` (its sign aside), for factors `s` of the weight's columns.
    pub fn rounding_energies(
        &self,
        device: &Device,
        factors: &[f32],
        gram: &Buffer<f32>,
    ) -> Result<Vec<f64>, CudaError> {
        let Arranged { weight, rows, columns } = &self.columns;
        assert_eq!((factors.len(), gram.len()), (*columns, columns * columns), "shapes of factors and gram");
        if *rows == 0 {
            return Ok(Vec::new());
        }
        let mut errors = Arranged { weight: device.duplicate(weight)?, rows: *rows, columns: *columns };
        let factors = device.upload(factors)?;
        device.scale_columns(&mut errors, &factors, false)?;
        device.take_rounding_errors(&mut errors, &self.groups, &self.spec)?;
        device.scale_columns(&mut errors, &factors, true)?;
        device.energies(&errors, gram)
    }
}

impl Device {
    /// `e G eᵀ` of each row `e` of `errors`, `[rows, inputs]`. Products are float32, sums float64.
    pub fn row_energies(&self, errors: &[f32], inputs: usize, gram: &Buffer<f32>) -> Result<Vec<f64>, CudaError> {
        assert_eq!(gram.len(), inputs * inputs, "shape of gram");
        let columns = self.arrange_as_stored(errors, inputs)?;
        if columns.rows == 0 { Ok(Vec::new()) } else { self.energies(&columns, gram) }
    }

    fn arrange_as_stored(&self, weight: &[f32], inputs: usize) -> Result<Arranged, CudaError> {
        self.arrange(weight, &(0..inputs).collect::<Vec<_>>())
    }

    fn scale_columns(&self, weight: &mut Arranged, factors: &Buffer<f32>, divide: bool) -> Result<(), CudaError> {
        let kernel = self.kernel(&CLIP, "scale_columns")?;
        let (columns, rows, divide) = (weight.columns as u32, weight.rows as u32, u32::from(divide));
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(&mut weight.weight).arg(factors).arg(&columns).arg(&rows).arg(&divide);
        // SAFETY: arguments as the kernel declares them; there is a factor for each column, and rows beyond the last are
        // left alone.
        unsafe { launch.launch(by_row(weight.rows, weight.columns)) }?;
        Ok(())
    }

    /// Puts `w - value(nearest code)` in the place of each weight, on grids that are fitted to it.
    fn take_rounding_errors(&self, weight: &mut Arranged, groups: &Groups, spec: &QuantSpec) -> Result<(), CudaError> {
        let mut grids = DeviceGrids::room(self, groups.count, weight.rows)?;
        grids.fit(self, weight, groups, 0, groups.count, spec)?;
        let kernel = self.kernel(&GRID, "rounding_errors")?;
        let (columns, rows, max_code) = (weight.columns as u32, weight.rows as u32, spec.max_code() as f32);
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(&mut weight.weight).arg(&groups.of_column).arg(&grids.scales).arg(&grids.zeros);
        launch.arg(&columns).arg(&rows).arg(&max_code);
        // SAFETY: arguments as the kernel declares them; every column's group has a grid for every row, and rows beyond
        // the last are left alone.
        unsafe { launch.launch(by_row(weight.rows, weight.columns)) }?;
        Ok(())
    }

    /// `e G eᵀ` of each row of `errors`.
    fn energies(&self, errors: &Arranged, gram: &Buffer<f32>) -> Result<Vec<f64>, CudaError> {
        let (columns, rows) = (errors.columns, errors.rows);
        let mut products = self.room(columns * rows, "errors times a Gram matrix")?;
        // [columns, rows] = G E, since G is symmetric.
        product(self, [columns, rows, columns], gram, &errors.weight, Right::AsIs, &mut products)?;
        let mut energies = self.room::<f64>(rows, "energies")?;
        let kernel = self.kernel(&CLIP, "row_energies")?;
        let (column_count, row_count) = (columns as u32, rows as u32);
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(&errors.weight).arg(&products).arg(&column_count).arg(&row_count).arg(&mut energies);
        // SAFETY: arguments as the kernel declares them; errors and products are [columns, rows], and rows beyond the
        // last are left alone.
        unsafe { launch.launch(by_row(rows, 1)) }?;
        self.download(&energies)
    }
}
