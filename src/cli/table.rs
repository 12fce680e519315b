//! Tables without borders: text to the left, numbers to the right. In: a header and rows. Out: aligned text, cut to the width by
//! leaving out the last columns, or lines with tabs.

/// A column, and which side its cells keep to.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    Left(&'static str),
    Right(&'static str),
}

impl Column {
    fn name(&self) -> &'static str {
        match self {
            Column::Left(name) | Column::Right(name) => name,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: Vec<Column>) -> Table {
        Table { columns, rows: Vec::new() }
    }

    /// One cell a column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "one cell a column");
        self.rows.push(cells);
    }

    pub fn tab_separated(&self) -> String {
        let header: Vec<&str> = self.columns.iter().map(Column::name).collect();
        let mut text = header.join("\t") + "\n";
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|cell| cell.replace(['\t', '\n'], " ")).collect();
            text.push_str(&(cells.join("\t") + "\n"));
        }
        text
    }

    /// Columns from the left while they fit into `width`; the first always stays.
    pub fn aligned(&self, width: usize, dim_header: bool) -> String {
        let header: Vec<String> = self.columns.iter().map(|column| column.name().to_string()).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| std::iter::once(&header).chain(&self.rows).map(|row| columns(&row[i])).max().unwrap_or(0))
            .collect();
        let mut shown = 0;
        let mut used = 0;
        for column in &widths {
            used += column + if shown > 0 { 2 } else { 0 };
            if used > width && shown > 0 {
                break;
            }
            shown += 1;
        }
        let line = |cells: &[String]| {
            let mut line = String::new();
            for (i, cell) in cells.iter().enumerate().take(shown) {
                if i > 0 {
                    line.push_str("  ");
                }
                let gap = " ".repeat(widths[i] - columns(cell));
                match self.columns[i] {
                    Column::Left(_) => line.push_str(&(cell.clone() + &gap)),
                    Column::Right(_) => line.push_str(&(gap + cell)),
                }
            }
            line.truncate(line.trim_end().len());
            line
        };
        let head = line(&header);
        let mut text = if dim_header { format!("\x1b[2m{head}\x1b[0m\n") } else { head + "\n" };
        for row in &self.rows {
            text.push_str(&(line(row) + "\n"));
        }
        text
    }
}

/// Columns of a terminal that `text` takes; our tables hold no wide characters.
fn columns(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec![Column::Left("PEER"), Column::Right("TOK/S"), Column::Left("PATH")]);
        table.row(vec!["quiet-heron 12fa9c".into(), "690".into(), "direct".into()]);
        table.row(vec!["olive-toad é".into(), "1 180".into(), "re\tlay".into()]);
        table
    }

    #[test]
    fn text_keeps_left_and_numbers_right() {
        assert_eq!(
            table().aligned(80, false),
            "PEER                TOK/S  PATH\n\
             quiet-heron 12fa9c    690  direct\n\
             olive-toad é        1 180  re\tlay\n"
        );
    }

    #[test]
    fn the_last_columns_go_first() {
        assert_eq!(table().aligned(25, false).lines().next(), Some("PEER                TOK/S"));
        assert_eq!(table().aligned(5, false).lines().next(), Some("PEER"));
    }

    #[test]
    fn a_pipe_gets_tabs() {
        assert_eq!(table().tab_separated().lines().nth(2), Some("olive-toad é\t1 180\tre lay"));
    }
}
