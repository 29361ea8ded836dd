//! What rounding costs a layer's output, which AWQ's search for factors compares. The kernels are `clip.cu` and `grid.cu`.

use super::{
    Buffer, CudaError, Device,
    blas::{Right, product},
    device::by_row,
    grids::{Arranged, DeviceGrids, Groups},
    sources::{CLIP, GRID},
};
use crate::QuantSpec;
use cudarc::driver::PushKernelArg;

impl Device {
    /// `e G eᵀ` of each row `e` of `round(W·s) / s - W` (its sign aside), for `weight` `[outputs, inputs]`, factors `s` of its
    /// columns and the Gram matrix `gram` of its inputs, `[inputs, inputs]`, whole. Products are float32, sums float64.
    pub fn scaled_rounding_energies(
        &self,
        weight: &[f32],
        factors: &[f32],
        gram: &Buffer<f32>,
        spec: &QuantSpec,
    ) -> Result<Vec<f64>, CudaError> {
        let inputs = factors.len();
        assert_eq!((weight.len() % inputs, gram.len()), (0, inputs * inputs), "shapes of weight, factors and gram");
        let order: Vec<usize> = (0..inputs).collect();
        let mut columns = self.arrange(weight, &order)?;
        if columns.rows == 0 {
            return Ok(Vec::new());
        }
        let factors = self.upload(factors)?;
        self.scale_columns(&mut columns, &factors, false)?;
        self.take_rounding_errors(&mut columns, spec)?;
        self.scale_columns(&mut columns, &factors, true)?;
        self.energies(&columns, gram)
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
    fn take_rounding_errors(&self, weight: &mut Arranged, spec: &QuantSpec) -> Result<(), CudaError> {
        let size = spec.columns_per_group(weight.columns);
        let index: Vec<u32> = (0..weight.columns).map(|column| (column / size) as u32).collect();
        let groups = Groups::new(self, &index, spec.groups(weight.columns))?;
        let mut grids = DeviceGrids::room(self, groups.count, weight.rows)?;
        grids.fit(self, weight, &groups, 0, groups.count, spec)?;
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
