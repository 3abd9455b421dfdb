// nextflow run main.nf --catalog /data/dr1 --out /data/vectors
// nextflow.config beside this file says which exit codes of skyvec are tried again.

params.catalog = "${launchDir}/sky"
params.out = "${launchDir}/results"
params.name = 'skyvec_tiny_v1'
params.options = ''
params.skyvec = 'skyvec'

process EMBED {
    // A run of what is done costs seconds, and only skyvec sees that catalog or model changed.
    cache false
    cpus 2

    input:
    // As text: a task that is tried again begins in a new folder, so `path` would stage the release
    // there, and the output would not continue where it stopped.
    tuple val(catalog), val(out), val(name)

    output:
    path "${name}.properties"

    script:
    """
    ${params.skyvec} embed '${catalog}' --out '${out}' --name '${name}' --workers ${task.cpus} ${params.options}
    ln -s '${out}/${name}.properties' .
    """
}

workflow {
    EMBED(channel.of([params.catalog, params.out, params.name]))
}
